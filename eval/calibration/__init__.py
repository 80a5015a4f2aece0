"""`sa-eval calibrate`: the best plan for a model on the user's own text, its folder and its page."""
