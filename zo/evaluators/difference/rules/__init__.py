"""Rules by family of torch functions; importing this registers all that ship."""

from zo.evaluators.difference.rules import (
    arithmetic,
    attention,
    convolution,
    losses,
    norms,
    piecewise,
    products,
    shapes,
    smooth,
    softmax,
)

__all__ = [
    "arithmetic",
    "attention",
    "convolution",
    "losses",
    "norms",
    "piecewise",
    "products",
    "shapes",
    "smooth",
    "softmax",
]
