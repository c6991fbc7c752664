"""Gradients from function values: estimators, evaluators, and the gradient of a network's weights."""

from zo import pruning
from zo.box_gradient.bases import Basis, DCTBasis, GivenBasis
from zo.box_gradient.differentiable import DifferentiableBox, RowCounts, differentiable
from zo.box_gradient.row_rge import RowRGE
from zo.draws import Key
from zo.errors import (
    ConfigurationError,
    DerivativeError,
    EvaluatorWarning,
    FailedQueriesError,
    KeepBestWarning,
    NoiseWarning,
    ObjectiveError,
    ParameterError,
    PruningWarning,
    RanksError,
    TangentError,
    TangentWarning,
    ZeroGradientWarning,
)
from zo.estimators.cge import CGE
from zo.estimators.control_variate import ControlVariate
from zo.estimators.estimator import Estimator
from zo.estimators.hybrid import Hybrid
from zo.estimators.rge import RGE
from zo.estimators.sparsity import (
    Complement,
    FixedCoordinates,
    LayerwiseCoordinates,
    RandomCoordinates,
    Sparsity,
)
from zo.estimators.surrogate_filled import SurrogateFilled
from zo.evaluators.difference.changes import Moved
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.difference.registry import difference_rule
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.execution.shared_rows import SharedRows
from zo.keep_best import KeepBest
from zo.loss_gradient import LossGradient, QueryCounts
from zo.masked_step import masked_step
from zo.objective import OutputLoss
from zo.parameters import Exclude, Parameters
from zo.tangents.gradient import TangentCounts, TangentGradient
from zo.tangents.models.convolution import ConvTangent
from zo.tangents.models.low_rank import LowRankTangent
from zo.tangents.models.model import ModelTangent
from zo.tangents.models.secant import SecantTangent
from zo.tangents.models.student import StudentTangent
from zo.tangents.models.window import WindowTangent
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import IdentityTangent, Tangent
from zo.tangents.trust import TrustPolicy

__all__ = [
    "CGE",
    "RGE",
    "Basis",
    "CallPairs",
    "Complement",
    "ConfigurationError",
    "ControlVariate",
    "ConvTangent",
    "DCTBasis",
    "DerivativeError",
    "Difference",
    "DifferentiableBox",
    "Estimator",
    "Evaluator",
    "EvaluatorWarning",
    "Exclude",
    "FailedQueriesError",
    "FixedCoordinates",
    "GivenBasis",
    "Hybrid",
    "IdentityTangent",
    "KeepBest",
    "KeepBestWarning",
    "Key",
    "LayerwiseCoordinates",
    "Loop",
    "LossGradient",
    "LowRankTangent",
    "ModelTangent",
    "Moved",
    "NoiseWarning",
    "ObjectiveError",
    "OutputLoss",
    "ParameterError",
    "Parameters",
    "PruningWarning",
    "QueryCounts",
    "RandomCoordinates",
    "RanksError",
    "RowCounts",
    "RowRGE",
    "SecantTangent",
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
    "WindowTangent",
    "ZeroGradientWarning",
    "difference_rule",
    "differentiable",
    "masked_step",
    "pruning",
]
