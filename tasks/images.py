"""Moved to `tasks.applications.images` in version 0.3.0."""

raise ImportError(
    "tasks.images is tasks.applications.images from version 0.3.0 on. Write that in the import."
)
