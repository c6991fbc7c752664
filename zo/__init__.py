"""Gradients from function values: estimators, evaluators, and the gradient of a network's weights."""

from zo import pruning
from zo.box_gradient.bases import Basis, GivenBasis, LowFrequencies
from zo.box_gradient.differentiable import differentiable
from zo.box_gradient.differentiable_box import DifferentiableBox, RowCounts
from zo.box_gradient.row_directions import RowDirections
from zo.distributed.shared_rows import SharedRows
from zo.draws import Key
from zo.errors import (
    ConfigurationError,
    DerivativeError,
    EvaluatorWarning,
    FailedQueriesError,
    HeldOutWarning,
    ObjectiveError,
    ParameterError,
    PruningWarning,
    RanksError,
    TangentError,
    TangentWarning,
    ZeroOrderError,
)
from zo.estimators.control_variate import ControlVariate
from zo.estimators.coordinate_wise import CoordinateWise
from zo.estimators.estimator import Estimator
from zo.estimators.hybrid import Hybrid
from zo.estimators.layerwise import LayerwiseCoordinates
from zo.estimators.random_directions import RandomDirections
from zo.estimators.sparsity import Complement, FixedCoordinates, RandomCoordinates, Sparsity
from zo.estimators.surrogate_filled import SurrogateFilled
from zo.evaluators.difference.changes import Moved
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.difference.registry import difference_rule
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.measured import Measured
from zo.evaluators.stacked import Stacked
from zo.evaluators.verified import Verified
from zo.held_out import HeldOut
from zo.loss_gradient import LossGradient, QueryCounts
from zo.objective import OutputLoss
from zo.parameters import Parameters, Without
from zo.sparse_updates import step_on_set
from zo.tangents.counts import TangentCounts
from zo.tangents.gradient import TangentGradient
from zo.tangents.models.convolution import ConvTangent
from zo.tangents.models.dense import DenseTangent
from zo.tangents.models.local_secant import LocalSecant
from zo.tangents.models.memory import Memory
from zo.tangents.models.model import ModelTangent
from zo.tangents.models.student import StudentTangent
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Identity, Tangent
from zo.tangents.trust.policy import TrustPolicy

__all__ = [
    "Basis",
    "CallPairs",
    "Complement",
    "ConfigurationError",
    "ControlVariate",
    "ConvTangent",
    "CoordinateWise",
    "DenseTangent",
    "DerivativeError",
    "Difference",
    "DifferentiableBox",
    "Estimator",
    "Evaluator",
    "EvaluatorWarning",
    "FailedQueriesError",
    "FixedCoordinates",
    "GivenBasis",
    "HeldOut",
    "HeldOutWarning",
    "Hybrid",
    "Identity",
    "Key",
    "LayerwiseCoordinates",
    "LocalSecant",
    "Loop",
    "LossGradient",
    "LowFrequencies",
    "Measured",
    "Memory",
    "ModelTangent",
    "Moved",
    "ObjectiveError",
    "OutputLoss",
    "ParameterError",
    "Parameters",
    "PruningWarning",
    "QueryCounts",
    "RandomCoordinates",
    "RandomDirections",
    "RanksError",
    "RowCounts",
    "RowDirections",
    "SharedRows",
    "Sparsity",
    "Stacked",
    "StudentTangent",
    "SurrogateFilled",
    "Tangent",
    "TangentCounts",
    "TangentError",
    "TangentGradient",
    "TangentWarning",
    "TrustPolicy",
    "Verified",
    "Without",
    "ZeroOrderError",
    "difference_rule",
    "differentiable",
    "pruning",
    "step_on_set",
]
