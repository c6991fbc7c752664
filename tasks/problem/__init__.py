"""The user's problem, and the way that it is found by its name."""
