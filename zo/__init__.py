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
    TangentError,
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
from zo.tangents.convolution import ConvTangent
from zo.tangents.counts import TangentCounts
from zo.tangents.dense import DenseTangent
from zo.tangents.gradient import TangentGradient
from zo.tangents.local_secant import LocalSecant
from zo.tangents.memory import Memory
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Identity, Tangent

__all__ = [
    "Basis",
    "CallPairs",
    "Complement",
    "ConfigurationError",
    "ConvTangent",
    "CoordinateWise",
    "DenseTangent",
    "DerivativeError",
    "DifferentiableBox",
    "Estimator",
    "Evaluator",
    "EvaluatorWarning",
    "FailedQueriesError",
    "FixedCoordinates",
    "GivenBasis",
    "Hybrid",
    "Identity",
    "Key",
    "LayerwiseCoordinates",
    "LocalSecant",
    "Loop",
    "LossGradient",
    "LowFrequencies",
    "Memory",
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
    "Tangent",
    "TangentCounts",
    "TangentError",
    "TangentGradient",
    "Verified",
    "Without",
    "ZeroOrderError",
    "differentiable",
    "pruning",
    "step_on_set",
]
