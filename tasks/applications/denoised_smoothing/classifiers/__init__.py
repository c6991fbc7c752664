"""Classifiers as black boxes: those that ship, what a service makes of their answers, and the whole stack."""

from tasks.applications.denoised_smoothing.classifiers.wrappers import (
    Clamped,
    Decoded,
    Metered,
    Scored,
    Shaped,
)

__all__ = ["Clamped", "Decoded", "Metered", "Scored", "Shaped"]
