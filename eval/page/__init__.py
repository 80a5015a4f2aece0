"""The report: one HTML file, its figures and tables. Reads files only."""
