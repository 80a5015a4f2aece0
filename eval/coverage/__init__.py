"""`sa-eval coverage`: what stacks of sparse layers connect, in theory and by simulation. No model takes part."""
