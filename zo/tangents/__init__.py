"""Learned tangents: models of black boxes, fitted to their values or to probes, in place of derivatives.

A tangent of your own is a `Tangent`: `at` says what it knows at some rows, as a `LinearMap` or another
`Linearised`; `see` and `learn` learn from rows, `CallPairs`, whose numbers are in the box's own units;
`d_scale` says what is usual for each (see `Units`).
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
