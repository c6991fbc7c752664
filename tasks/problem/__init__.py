"""What a user writes, and how a problem is found by its name."""
