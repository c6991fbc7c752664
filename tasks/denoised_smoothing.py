"""Moved to `tasks.applications.denoised_smoothing` in version 0.3.0."""

raise ImportError(
    "tasks.denoised_smoothing is tasks.applications.denoised_smoothing from version 0.3.0 on. "
    "Write that in the import."
)
