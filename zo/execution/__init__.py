"""What serves a step: its base, the check of what evaluates it, its pieces, several processes, a journal."""

from zo.execution.shared_rows import SharedRows

__all__ = ["SharedRows"]
