"""Several processes on one run: how they start, and what they agree on."""
