"""Gradients from function values: of a network's weights, through black boxes, and around one.

What a user of the library needs is here. Who extends it finds more in `zo.estimators` (query plans and sparse
sets), `zo.evaluators` (ways to evaluate them), `zo.tangents` (models of a box), `zo.box_gradient` (autograd
around a box), `zo.pruning` (scores and layer ratios) and `zo.errors`.
"""

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package
from zo import box_gradient, errors, estimators, evaluators, pruning, tangents
from zo import (
    jax as jax,
)  # not in __all__: `from zo import *` would take the name of the package from its users
from zo.box_gradient import DCTBasis, RowRGE, custom_op, differentiable, finite_difference
from zo.errors import (
    ConfigurationError,
    EvaluatorWarning,
    FailedBatchError,
    FailedQueriesError,
    NoiseWarning,
    ObjectiveError,
    ParameterError,
    RanksError,
    SlopeWarning,
    TangentError,
    TangentWarning,
    ZeroGradientWarning,
)
from zo.estimators import (
    CGE,
    RGE,
    FixedCoordinates,
    LayerwiseCoordinates,
    RandomCoordinates,
)
from zo.execution.shared_rows import SharedRows
from zo.field import Field, FieldFit, fit_field
from zo.keep_best import KeepBest
from zo.loss_gradient import LossGradient, QueryCounts
from zo.objective import OutputLoss
from zo.parameters import Exclude
from zo.tangents import (
    AutoTangent,
    EquationTangent,
    GraphTangent,
    GridTangent,
    IdentityTangent,
    KernelTangent,
    MeshTangent,
    MLPTangent,
    PairTangent,
    RatePopulation,
    StencilTangent,
    StudentTangent,
    TangentCounts,
    TangentGradient,
    TrustPolicy,
)

__all__ = [
    "CGE",
    "RGE",
    "AutoTangent",
    "ConfigurationError",
    "DCTBasis",
    "EquationTangent",
    "EvaluatorWarning",
    "Exclude",
    "FailedBatchError",
    "FailedQueriesError",
    "Field",
    "FieldFit",
    "FixedCoordinates",
    "GraphTangent",
    "GridTangent",
    "IdentityTangent",
    "KeepBest",
    "KernelTangent",
    "LayerwiseCoordinates",
    "LossGradient",
    "MLPTangent",
    "MeshTangent",
    "NoiseWarning",
    "ObjectiveError",
    "OutputLoss",
    "PairTangent",
    "ParameterError",
    "QueryCounts",
    "RandomCoordinates",
    "RanksError",
    "RatePopulation",
    "RowRGE",
    "SharedRows",
    "SlopeWarning",
    "StencilTangent",
    "StudentTangent",
    "TangentCounts",
    "TangentError",
    "TangentGradient",
    "TangentWarning",
    "TrustPolicy",
    "ZeroGradientWarning",
    "box_gradient",
    "custom_op",
    "differentiable",
    "errors",
    "estimators",
    "evaluators",
    "finite_difference",
    "fit_field",
    "pruning",
    "tangents",
]
