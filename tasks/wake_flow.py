"""Moved to `tasks.applications.wake_flow` in version 0.3.0."""

raise ImportError(
    "tasks.wake_flow is tasks.applications.wake_flow from version 0.3.0 on. Write that in the import."
)
