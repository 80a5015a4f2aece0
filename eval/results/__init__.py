"""From records to results: statistics, gates, words and tables. Reads files only."""
