"""`sa-eval speed`: time to first token, tokens per second, memory."""
