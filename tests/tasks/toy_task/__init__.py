"""A task small enough for tests: a line through a black box, two methods, every file a task has."""
