"""Rules by family of torch functions; importing this registers all that ship."""

from zo.evaluators.difference.rules import (
    arithmetic,
    attention,
    convolution,
    losses,
    norms,
    piecewise,
    pooling,
    products,
    shapes,
    smooth,
    softmax,
)

FAMILIES = (
    arithmetic,
    attention,
    convolution,
    losses,
    norms,
    piecewise,
    pooling,
    products,
    shapes,
    smooth,
    softmax,
)
