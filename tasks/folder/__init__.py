"""All of a run that is on disk: its folder, checkpoints, what is kept beside them, and the result."""
