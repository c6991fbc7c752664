"""The tangents that learn, and your own solver as one."""
