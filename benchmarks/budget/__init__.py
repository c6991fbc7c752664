"""What `blackbox run --rows N` makes of a budget, beside the best of other ways at the same rows."""
