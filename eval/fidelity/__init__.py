"""`sa-eval fidelity`: how far every arm is from the full model on the user's own texts, without any task."""
