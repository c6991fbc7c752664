"""Gradients from function values: of a network's weights, through black boxes, and around one.

What a user of the library needs is here. Who extends it finds more in `zo.estimators` (query plans and sparse
sets), `zo.evaluators` (ways to evaluate them), `zo.tangents` (models of a box), `zo.box_gradient` (autograd
around a box), `zo.pruning` (scores and layer ratios) and `zo.errors`.
"""

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package
from blackbox.faces import named_by_stub

# without zo.jax: `from zo import *` would take the name of the package from its users
_PARTS = "box_gradient", "errors", "estimators", "evaluators", "pruning", "tangents"
__getattr__, __all__ = named_by_stub(__name__, parts=_PARTS)
