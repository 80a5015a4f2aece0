"""One run, from loaded model to records on the disk.

lm_eval, transformers and accelerate take seconds to import: they wait inside functions until a model is in memory, so
that a mistake in the settings is told at once.
"""
