"""What runs, and results read from them, keep on the disk: types, files, locks, identity."""
