"""The conditions for playing back an objective's record, and checks for missing parts of its gradient."""
