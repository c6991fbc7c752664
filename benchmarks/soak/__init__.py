"""A soak: tasks run through the console script under faults, and must end as undisturbed."""
