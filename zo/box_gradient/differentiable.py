"""`differentiable`: autograd around a black box; its vector-Jacobian products come from function values."""

from __future__ import annotations

from blackbox import BlackBoxFunction
from zo.box_gradient.differentiable_box import DifferentiableBox
from zo.box_gradient.row_rge import RowRGE
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE
from zo.estimators.rge import RGE
from zo.tangents.tangent import Tangent


def differentiable(
    box: BlackBoxFunction,
    estimator: RGE | RowRGE | CGE | None = None,
    *,
    tangent: Tangent | None = None,
    seed: int = 0,
    max_rows: int | None = None,
    max_dropped: float = 0.1,
) -> DifferentiableBox:
    """Autograd around a black box.

        solver = zo.differentiable(box, zo.RGE(mu=1e-3, q=64), seed=0)
        loss = (solver(network(x)) - y).square().mean()
        loss.backward()

    Forward evaluates the box once on the batch, and nothing else. Backward takes the gradient v that
    arrives at the outputs, perturbs for every row z the inputs that require a gradient, and estimates
    that row's gradient of <v, F(z)> with the estimator's formulas: one scalar for each query and *row*.
    All queries of all rows reach the box in one call. Without a graph (`no_grad`, or no input that
    requires a gradient) there are no queries.

        solver = zo.differentiable(box, zo.RowRGE(mu=1e-3, q=2), tangent=zo.WindowTangent(), seed=0)

    With a tangent the queries' answers are not averaged but learned from: a few directions for each row and
    call, and what they show adds up over rows, calls and steps. In backward the tangent predicts a call's
    answers (`trust` says how well), learns from them, and gives the call's vector-Jacobian product. To it
    each call is a step: what it forgets or fits "a step", it does at each. The gradient is biased as far as
    the tangent is wrong. Where what stands around the box can be evaluated for a whole batch of variants,
    `TangentGradient` spends its rows on the directions in which the weights move the box's input; these
    are drawn in all of it, or in a basis.

    Parameters inside the box need nothing more: make them an input of the box, one copy a row, and
    autograd sums the rows' gradients.

        class Device(BlackBoxFunction):             # f(theta_rows, batch): one theta for each row
            inputs = (ArraySpec("theta", shape=(12,)), ArraySpec("x", shape=(3,), differentiable=False))
        theta = nn.Parameter(torch.zeros(12))
        y = device(theta.expand(len(x), -1), x)     # device = zo.differentiable(Device(), ...)

    Each row then estimates its own derivative with respect to theta, with directions of its own: a
    batch of rows gives theta rows x queries scalars. A tangent has to know how the effect of theta hangs on
    x: `SecantTangent` from its own call's directions, so many that they span theta (and what else requires a
    gradient); a `WindowTangent` knows one effect of theta for all x and all theta. For `TangentGradient` and
    `LossGradient` theta has to be read in the forward of the module that holds it, where variants are told
    apart: `def forward(self, x): return self.theta.expand(len(x), -1)`.

    Args:
        box: with at least one input and one output that is differentiable. Inputs whose spec says
            `differentiable=False`, and integers, get no gradient (None).
        estimator: `RGE` or `RowRGE` (each row draws its own), or `CGE`
            over all numbers of a row's perturbed inputs; mu is in the inputs' units. None for no queries,
            with a tangent that learns from values, such as a student network, or learns nothing.
        tangent: a copy of it learns from the queries; None to estimate from each call's queries alone.
        seed: all draws hang on (seed, number of the call). Two boxes of a run take two seeds.
        max_rows: the most rows of one call in backward; None for no limit. Results are equal to the bit
            only for equal limits.
        max_dropped: the fraction of a backward's queries that may fail before it is an error.

    Failed rows: one whose outputs in the base are not finite gets a gradient of zero, whatever arrives
    at it, and no queries. A query that fails is left out for that row: `CGE` leaves its
    coordinate at zero, directions take the mean over the rest, a tangent does not learn from it; it is
    counted. What comes *after* a failed row must leave it out by indexing: a network that saw its NaN has
    NaN weight gradients.

    Raises:
        ConfigurationError: a value out of its range.
    """
    _check_box(box)
    _check_tangent(tangent, estimator)
    planned = None if estimator is None else _row_estimator(estimator)
    return DifferentiableBox(box, planned, tangent, seed, max_rows, max_dropped)


def _check_tangent(tangent: object, estimator: object) -> None:
    if tangent is not None and not isinstance(tangent, Tangent):
        raise ConfigurationError(
            f"differentiable, tangent: expected a Tangent or None, got {type(tangent).__name__}. "
            "Such as zo.WindowTangent()."
        )
    if estimator is None and (tangent is None or (tangent.learns and not tangent.learns_from_values)):
        found = "no tangent" if tangent is None else f"{tangent!r}, which learns from queries alone"
        raise ConfigurationError(
            "differentiable, estimator: expected None only with a tangent that learns from values, got "
            f"{found}. Give the queries, such as RowRGE(mu=1e-3, q=2)."
        )


def _check_box(box: object) -> None:
    if not isinstance(box, BlackBoxFunction):
        raise ConfigurationError(
            f"differentiable, box: expected a BlackBoxFunction, got {type(box).__name__}. "
            "Make it a subclass of BlackBoxFunction first."
        )
    for kind, specs in (("input", box.inputs), ("output", box.outputs)):
        if not any(spec.differentiable for spec in specs):
            raise ConfigurationError(
                f"differentiable, box: expected {box!r} to have a differentiable {kind}, found none among "
                f"{', '.join(spec.name for spec in specs)}. Change its spec, or call the box as it is."
            )


def _row_estimator(estimator: object) -> RowRGE | CGE:
    if isinstance(estimator, RGE | CGE) and estimator.sparsity is not None:
        raise ConfigurationError(
            f"differentiable, estimator: expected {type(estimator).__name__} without a sparsity, whose sets "
            f"are of a network's parameters, got {estimator.sparsity!r}. For fewer queries take "
            "RowRGE with a small q, or with a basis."
        )
    if isinstance(estimator, RGE):
        return RowRGE.like(estimator)
    if not isinstance(estimator, RowRGE | CGE):
        raise ConfigurationError(
            "differentiable, estimator: expected RGE, RowRGE or CGE, "
            f"got {type(estimator).__name__}. Make one of these three."
        )
    return estimator
