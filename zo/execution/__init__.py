"""The execution of a step: its base, the check of its evaluator, its pieces, several processes, a journal."""

from zo.execution.shared_rows import SharedRows

__all__ = ["SharedRows"]
