"""Learned tangents: models of black boxes, fitted to their values, in place of derivatives.

A tangent of your own is a `Tangent`: `at` says what it knows at some rows, as a `LinearMap` or another
`Linearised`; `see` and `learn` learn from rows, `CallPairs`, whose numbers are in the box's own units;
`response_scale` says what is usual for each output (see `Units`).
"""

from zo.tangents.gradient import TangentGradient
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.grid.equation_tangent import EquationTangent
from zo.tangents.models.grid.grid import GridTangent
from zo.tangents.models.grid.stencil import StencilTangent
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.mesh.graph import GraphTangent
from zo.tangents.models.mesh.mesh import MeshTangent
from zo.tangents.models.mlp import MLPTangent
from zo.tangents.models.model import ModelTangent
from zo.tangents.models.network import Learning
from zo.tangents.models.particles.particles import PairTangent
from zo.tangents.models.student.student import StudentTangent
from zo.tangents.models.values import ValueTangent
from zo.tangents.population import RatePopulation
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.units import Units
from zo.tangents.step.counts import TangentCounts
from zo.tangents.surrogate import Surrogate
from zo.tangents.tangent import IdentityTangent, Linearised, LinearMap, Tangent, Unknown, ZeroTangent
from zo.tangents.trust import TrustPolicy

__all__ = [
    "AutoTangent",
    "CallPairs",
    "EquationTangent",
    "GraphTangent",
    "GridTangent",
    "IdentityTangent",
    "KernelTangent",
    "Learning",
    "LinearMap",
    "Linearised",
    "MLPTangent",
    "MeshTangent",
    "ModelTangent",
    "PairTangent",
    "RatePopulation",
    "StencilTangent",
    "StudentTangent",
    "Surrogate",
    "Tangent",
    "TangentCounts",
    "TangentGradient",
    "TrustPolicy",
    "Units",
    "Unknown",
    "ValueTangent",
    "ZeroTangent",
]
