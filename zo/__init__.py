"""Gradients from function values: estimators, evaluators, and the gradient of a network's weights."""

from zo import pruning
from zo.box_gradient.bases import Basis, GivenBasis, LowFrequencies
from zo.box_gradient.differentiable import differentiable
from zo.box_gradient.differentiable_box import DifferentiableBox, RowCounts
from zo.box_gradient.row_directions import RowDirections
from zo.draws import Key
from zo.errors import (
    ConfigurationError,
    DerivativeError,
    EvaluatorWarning,
    FailedQueriesError,
    ObjectiveError,
    ParameterError,
    PruningWarning,
    ZeroOrderError,
)
from zo.estimators.coordinate_wise import CoordinateWise
from zo.estimators.estimator import Estimator
from zo.estimators.hybrid import Hybrid
from zo.estimators.layerwise import LayerwiseCoordinates
from zo.estimators.random_directions import RandomDirections
from zo.estimators.sparsity import Complement, FixedCoordinates, RandomCoordinates, Sparsity
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.evaluators.verified import Verified
from zo.loss_gradient import LossGradient, QueryCounts
from zo.parameters import Parameters, Without
from zo.sparse_updates import step_on_set

__all__ = [
    "Basis",
    "Complement",
    "ConfigurationError",
    "CoordinateWise",
    "DerivativeError",
    "DifferentiableBox",
    "Estimator",
    "Evaluator",
    "EvaluatorWarning",
    "FailedQueriesError",
    "FixedCoordinates",
    "GivenBasis",
    "Hybrid",
    "Key",
    "LayerwiseCoordinates",
    "Loop",
    "LossGradient",
    "LowFrequencies",
    "ObjectiveError",
    "ParameterError",
    "Parameters",
    "PruningWarning",
    "QueryCounts",
    "RandomCoordinates",
    "RandomDirections",
    "RowCounts",
    "RowDirections",
    "Sparsity",
    "Stacked",
    "Verified",
    "Without",
    "ZeroOrderError",
    "differentiable",
    "pruning",
    "step_on_set",
]
