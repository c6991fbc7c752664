"""Learned tangents: linear models of black boxes, fitted to what probes show, in place of derivatives.

A tangent of your own is a `Tangent`: `apply` and its adjoint `vjp`, and `observe` or `see` to learn from
`CallPairs`, whose numbers are in the box's own units; `d_scale` says what is usual for each (see `Units`).
"""

from zo.tangents.gradient import TangentCounts, TangentGradient
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.graph import GraphTangent
from zo.tangents.models.grid import GridTangent
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.low_rank import LowRankTangent
from zo.tangents.models.mesh import MeshTangent
from zo.tangents.models.mlp import MLPTangent
from zo.tangents.models.model import ModelTangent
from zo.tangents.models.particles import PairTangent
from zo.tangents.models.secant import SecantTangent
from zo.tangents.models.stencil import StencilTangent
from zo.tangents.models.student import StudentTangent
from zo.tangents.models.values import ValueTangent
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import IdentityTangent, Tangent, ZeroTangent
from zo.tangents.trust import TrustPolicy
from zo.tangents.units import Units

__all__ = [
    "AutoTangent",
    "CallPairs",
    "GraphTangent",
    "GridTangent",
    "IdentityTangent",
    "KernelTangent",
    "LowRankTangent",
    "MLPTangent",
    "MeshTangent",
    "ModelTangent",
    "PairTangent",
    "SecantTangent",
    "StencilTangent",
    "StudentTangent",
    "Tangent",
    "TangentCounts",
    "TangentGradient",
    "TrustPolicy",
    "Units",
    "ValueTangent",
    "ZeroTangent",
]
