"""Models and their weights: found, checked, loaded, identified."""
