"""All of a run that is on disk."""
