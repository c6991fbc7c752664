"""A run on disk: its folder, atomic writes, checkpoints, and the result in one schema for all tasks."""
