"""How a model is asked through lm-eval: exact lengths, the model type `sa`, the command `sa-lm-eval`."""
