"""Gradients of a black box's inputs from its values: autograd around it, and the queries that it makes."""

from zo.box_gradient.bases import DCTBasis
from zo.box_gradient.differentiable import differentiable
from zo.box_gradient.differentiable_box import DifferentiableBox, RowCounts
from zo.box_gradient.finite_difference import FiniteDifference, finite_difference
from zo.box_gradient.row_rge import RowRGE

__all__ = [
    "DCTBasis",
    "DifferentiableBox",
    "FiniteDifference",
    "RowCounts",
    "RowRGE",
    "differentiable",
    "finite_difference",
]
