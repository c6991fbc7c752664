"""`differentiable`: autograd around a black box; its vector-Jacobian products come from function values."""

from __future__ import annotations

from blackbox import BlackBoxFunction
from blackbox.spec import none_differentiable
from zo.box_gradient.differentiable_box import DifferentiableBox
from zo.box_gradient.row_rge import RowRGE
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE
from zo.estimators.rge import RGE
from zo.same_run import described
from zo.tangents.tangent import Tangent


def differentiable(
    box: BlackBoxFunction,
    estimator: RGE | RowRGE | CGE | None = None,
    *,
    tangent: Tangent | None = None,
    seed: int | None = None,
    max_rows: int | None = None,
    max_dropped: float = 0.1,
    check: bool = True,
) -> DifferentiableBox:
    """Autograd around a black box: a module like any other, without parameters.

        solver = zo.differentiable(box, zo.RGE(mu=1e-3, q=64), seed=0)
        loss = (solver(network(x)) - y).square().mean()
        loss.backward()

    The forward pass evaluates the box once on the batch, and nothing else. The backward pass receives the
    gradient v of the outputs. For every row z it perturbs the inputs that require a gradient, and estimates
    that row's gradient of <v, F(z)> with the estimator's formulas: one scalar for each query and *row*. All
    queries of all rows reach the box in one call. Without a graph (`no_grad`, or no input that requires a
    gradient) there are no queries.

        solver = zo.differentiable(box, tangent=zo.tangents.MLPTangent(), seed=0)

    With a tangent there are no queries: it learns from the values of the rows that pass, over calls and
    steps. In the backward pass it predicts a call's outputs (`trust` says how well), learns from them, and
    gives the call's vector-Jacobian product. For the tangent each call is a step: whatever it forgets or fits
    once per step, it does at each call. The gradient is as biased as the tangent is wrong: a `TangentWarning`
    says once, from 50 backward passes on, that it predicts next to nothing. If the code around the box can be
    evaluated again, `TangentGradient` replays what the box answered and checks the gradient.

    Parameters inside the box need nothing more: make them an input of the box, one copy per row, and autograd
    sums the rows' gradients.

        class Device(BlackBoxFunction):             # f(theta_rows, batch): one theta for each row
            inputs = (ArraySpec("theta", shape=(12,)), ArraySpec("x", shape=(3,), differentiable=False))
        theta = nn.Parameter(torch.zeros(12))
        y = device(theta.expand(len(x), -1), x)     # device = zo.differentiable(Device(), ...)

    Each row then estimates its own derivative with respect to theta, with its own directions: a batch of rows
    gives theta rows x queries scalars. A tangent has to know how the effect of theta depends on x.
    For `LossGradient`, theta must be read in the forward of the module that holds it,
    where variants are distinguished: `def forward(self, x): return self.theta.expand(len(x), -1)`.

    What is checked: at calls 0, 1, 10, 100, 1,000 and so on, a few queries are asked again at half of their
    step, and in doubt more of them. One warning says how wrong slopes seem to be, from 30 % on, and why: a
    `NoiseWarning` if the box is noisy or rounds, a `SlopeWarning` if it jumps, curves within mu, or has a
    kink right at its inputs, as a ReLU at zeros. These rows are counted (`counts.checks`); they change no
    gradient, and where a budget has no rows left for them they are left out. For a tangent, up to 16 rows
    are moved along its gradient in backward passes 50, 500 and so on: a `TangentWarning` says once that the
    box changes by less than half of the gradient's prediction, or by more than twice that. Numbers of an
    output that stand still while others answer give a `ZeroGradientWarning`.

    Steps: each number moves by mu, in its own units, or by mu times the `scale` of its spec. Inputs without a
    scale, or the numbers of one, may differ in size by a factor of 100 or more. If a few rows then show that
    other steps give slopes, each number moves by mu times its own size, divided by the size that is nearest
    to one. A `UnitsWarning` says so once, and `state_dict` keeps these sizes.

    Failed rows: a row whose outputs in the base are not finite gets a gradient of zero, whatever arrives at
    it, and no queries. A query that fails is left out for that row and counted: directions take the mean over
    the rest, and a central difference uses the side that is left. Where nothing is left (of a coordinate of
    `CGE`, or in a row), as at the edge of the box's domain, forward queries are asked the other way
    (`counts.checks`). Where these fail too the gradient is zero. Code *after* a failed row must leave it out
    by indexing: a network that saw its NaN has NaN weight gradients.

    Args:
        box: a box with at least one differentiable input and output. Inputs whose spec says
            `differentiable=False`, and integers, get no gradient (None).
        estimator: `RGE` or `RowRGE`, which draw directions for each row, or `CGE` over all numbers of a row's
            perturbed inputs. mu is in the inputs' units, or in the `scale` of their specs. None with a
            tangent.
        tangent: a tangent; a copy of it learns from values. These do not show the derivative by an input that
            the other inputs determine, as an action in closed loop: a `TangentWarning` says so once.
            `TangentGradient` dithers such inputs. None with an estimator.
        seed: the seed; all draws depend only on it and on the number of the call. None, the default, makes a
            seed: the first box that a process makes without a seed is number 0, the next 1, and a deep copy
            is the next one. Boxes of equal seeds draw the same directions, which spoils the gradient through
            both: give each box of a run another seed. A `SeedWarning` says so once.
        max_rows: the most rows of one call in the backward pass; None for no limit. Results are equal to the
            bit only for equal limits.
        max_dropped: the fraction of a backward pass's queries that may fail before it raises an error.
        check: whether some queries are asked again, see above. Say False where steps are wide on purpose, as
            over the steps of a decision forest, or where every row is planned for.

    Raises:
        ConfigurationError: a value is out of range, or the box cannot be set to perturbed inputs
            (`BlackBoxFunction.settable`).
    """
    check_differentiable("differentiable", box)
    _check_tangent(tangent, estimator)
    if tangent is not None:
        check_copies("differentiable", box)
    _check_settable(box, estimator)
    return DifferentiableBox(box, _row_estimator(estimator), tangent, seed, max_rows, max_dropped, check)


def check_differentiable(owner: str, box: object) -> None:
    """Refuse what is no black box, or has no input or no output with a derivative.

    Raises:
        ConfigurationError: it is.
    """
    if not isinstance(box, BlackBoxFunction):
        raise ConfigurationError(
            f"{owner}, box: expected a BlackBoxFunction, got {type(box).__name__}. "
            "Make it a subclass of BlackBoxFunction first."
        )
    for kind, specs in (("input", box.inputs), ("output", box.outputs)):
        if not any(spec.differentiable for spec in specs):
            raise ConfigurationError(f"{owner}, box {box!r}: {none_differentiable(kind, specs)}")


def check_copies(owner: str, box: BlackBoxFunction) -> None:
    """Refuse a box with outputs that are copies of inputs, which a tangent would not learn.

    Raises:
        ConfigurationError: it has some.
    """
    copies = [spec.name for spec in box.outputs if spec.copy_of is not None]
    if copies:
        raise ConfigurationError(
            f"{owner}, box {box!r}: expected outputs without copy_of= where a tangent learns, got it "
            f"of {', '.join(copies)}. Leave it out here; zo.TangentGradient goes by it."
        )


def _check_settable(box: BlackBoxFunction, estimator: object) -> None:
    if estimator is not None and not box.settable:
        raise ConfigurationError(
            f"differentiable, estimator: expected None, as {box!r} cannot be set to perturbed inputs: rows "
            f"go on from what it gave before. Got {type(estimator).__name__}, which perturbs them. Take "
            "zo.TangentGradient or zo.LossGradient, or a tangent."
        )


def _check_tangent(tangent: object, estimator: object) -> None:
    if tangent is not None and not isinstance(tangent, Tangent):
        raise ConfigurationError(
            f"differentiable, tangent: expected a Tangent or None, got {type(tangent).__name__}. "
            "Such as zo.tangents.MLPTangent()."
        )
    if (estimator is None) == (tangent is None):
        got = "neither" if tangent is None else f"both, {described(estimator)} and {tangent!r}"
        raise ConfigurationError(
            f"differentiable, estimator: expected an estimator or a tangent, got {got}. Give the queries, "
            "such as RowRGE(mu=1e-3, q=2), or a tangent, which learns from values."
        )


def _row_estimator(estimator: object) -> RowRGE | CGE | None:
    """The estimator of a row's inputs: RGE's directions are drawn for each row."""
    if estimator is not None and not isinstance(estimator, RGE | RowRGE | CGE):
        raise ConfigurationError(
            "differentiable, estimator: expected RGE, RowRGE or CGE, "
            f"got {type(estimator).__name__}. Make one of these three."
        )
    if isinstance(estimator, RGE | CGE) and estimator.sparsity is not None:
        raise ConfigurationError(
            f"differentiable, estimator: expected {type(estimator).__name__} without a sparsity, whose sets "
            f"are of a network's parameters, got {estimator.sparsity!r}. For fewer queries take "
            "RowRGE with a small q, or with a basis."
        )
    if isinstance(estimator, RGE):
        return RowRGE(estimator.mu, estimator.q, estimator.distribution, estimator.central)
    return estimator
