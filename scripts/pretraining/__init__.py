"""Training language models from scratch with another attention: what `scripts/pretrain.py` is made of."""
