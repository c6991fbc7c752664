"""Not measured on a GPU, and off unless asked for: a kernel for a chain of calls, passes as CUDA graphs."""
