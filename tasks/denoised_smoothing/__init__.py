"""Denoised smoothing: a certified defence of a classifier that only answers queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.denoised_smoothing.certification.smoothed import SmoothedClassifier
    from tasks.denoised_smoothing.problem import DenoisedSmoothing

__all__ = ["DenoisedSmoothing", "SmoothedClassifier"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of a module
    """Import a class when it is asked for, and no sooner."""
    if name == "SmoothedClassifier":
        from tasks.denoised_smoothing.certification.smoothed import SmoothedClassifier

        return SmoothedClassifier
    if name == "DenoisedSmoothing":
        from tasks.denoised_smoothing.problem import DenoisedSmoothing

        return DenoisedSmoothing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
