"""Several processes in one run: ranks, tensor parallelism, interrupts."""
