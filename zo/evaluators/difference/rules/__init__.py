"""Rules by family of torch functions; importing this registers all that ship."""

from zo.evaluators.difference.rules import (
    arithmetic,
    batch_norm,
    convolution,
    linear_change,
    products,
    subtracted,
)

__all__ = ["arithmetic", "batch_norm", "convolution", "linear_change", "products", "subtracted"]
