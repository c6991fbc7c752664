"""Learned tangents: models of black boxes, fitted to their values, in place of derivatives.

A tangent of your own is a `Tangent`: `at` says what it knows at some rows, as a `LinearMap` or another
`Linearised`; `see` and `learn` learn from rows, `CallPairs`, whose numbers are in the box's own units;
`response_scale` says what is usual for each output (see `Units`).
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
