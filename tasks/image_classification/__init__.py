"""Image classification: networks trained from scratch from function values, beside other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.image_classification.classifier import load_classifier

__all__ = ["load_classifier"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of a module
    """Import the function when it is asked for: the command line reads `config.py`, which needs no torch."""
    if name == "load_classifier":
        from tasks.image_classification.classifier import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
