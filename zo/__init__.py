"""Gradients from function values: estimators, evaluators, and the gradient of a network's weights."""

from zo.draws import Key
from zo.errors import (
    ConfigurationError,
    EvaluatorWarning,
    FailedQueriesError,
    ObjectiveError,
    ParameterError,
    ZeroOrderError,
)
from zo.estimators.coordinate_wise import CoordinateWise
from zo.estimators.estimator import Estimator
from zo.estimators.random_directions import RandomDirections
from zo.estimators.sparsity import RandomCoordinates, Sparsity
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.evaluators.verified import Verified
from zo.loss_gradient import LossGradient, QueryCounts
from zo.parameters import Parameters

__all__ = [
    "ConfigurationError",
    "CoordinateWise",
    "Estimator",
    "Evaluator",
    "EvaluatorWarning",
    "FailedQueriesError",
    "Key",
    "Loop",
    "LossGradient",
    "ObjectiveError",
    "ParameterError",
    "Parameters",
    "QueryCounts",
    "RandomCoordinates",
    "RandomDirections",
    "Sparsity",
    "Stacked",
    "Verified",
    "ZeroOrderError",
]
