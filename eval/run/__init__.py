"""One run, from loaded model to records on the disk."""
