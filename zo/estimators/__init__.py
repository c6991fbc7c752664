"""Query plans: which perturbations a step evaluates, and the gradient made of their differences.

An estimator of your own is an `Estimator`: `plan` gives `Perturbations`, which are asked for in chunks of
`Coordinates` or `Directions`, drawn from a `Key` over the flat `Parameters`; `reduce` makes the gradient.
"""

from zo.draws import Key
from zo.estimators.cge import CGE
from zo.estimators.estimator import Estimator
from zo.estimators.rge import RGE
from zo.estimators.sparsity import (
    FixedCoordinates,
    LayerwiseCoordinates,
    RandomCoordinates,
    Sparsity,
)
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Directions, Perturbations

__all__ = [
    "CGE",
    "RGE",
    "Coordinates",
    "Directions",
    "Estimator",
    "FixedCoordinates",
    "Key",
    "LayerwiseCoordinates",
    "Parameters",
    "Perturbations",
    "RandomCoordinates",
    "Sparsity",
]
