"""The documents of a run, from the offline suite and from lm-eval."""
