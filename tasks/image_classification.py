"""Moved to `tasks.applications.image_classification` in version 0.3.0."""

raise ImportError(
    "tasks.image_classification is tasks.applications.image_classification from version 0.3.0 on. "
    "Write that in the import."
)
