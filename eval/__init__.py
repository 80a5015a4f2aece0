"""Compare sparse attention variants on long-context tasks: `sa-eval`, or `sa_eval.cli.main`."""
