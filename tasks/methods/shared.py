"""The ways to train any problem's network, what they cost and what they refuse; `by_name` has their table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from blackbox.checks import nearest
from tasks.configuration import Config
from tasks.errors import NotApplicableError, ProblemError
from tasks.methods.autograd import AutogradGradient, Stand, values_alone
from tasks.methods.problem_reference import compare, with_derivative
from tasks.problem.method import Cost
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained, TrainingOutcome
from tasks.training.setup import Setup
from zo.batches import map_tensors
from zo.box_gradient.differentiable_box import most_checks
from zo.estimators import Key, Parameters
from zo.evaluators.state import Snapshot
from zo.tangents.tangent import sources

CONFIRMED = 4  # queries that a check takes at most, as a rule, where it finds fault
ROUNDED = 1e-2  # by which probabilities that are rounded may miss a sum of one
ZEROS = 3  # first steps of no-gradient with gradients of exactly zero, after which no other is waited for


def none(setup: Setup) -> Trained:
    """The start: nothing is trained."""
    return Trained(setup.network, TrainingOutcome(setup.stage))


def no_gradient(setup: Setup) -> Trained:
    """Unrolled through the box, the gradient cut there (NOG): is the box's derivative needed at all?"""
    stands = {box: values_alone(box) for box in setup.boxes}
    alone = AutogradGradient(setup.network, setup.objective, stands, ZEROS)
    if not setup.config.replays:
        return setup.descend(alone)

    def begin() -> None:
        """See that there is a way beside the box: a gradient of zero would train nothing, step by step."""
        before, step = Snapshot(setup.network), 0
        while alone.flat:
            alone.backward(setup.batch(step))
            before.restore()
            setup.network.zero_grad()
            step += 1

    return _with_replays(setup, [zo.tangents.ZeroTangent() for _ in setup.boxes], begin)


def identity(setup: Setup) -> Trained:
    """The box's derivative is taken to be one; for boxes whose outputs have the shapes of their inputs.

    Raises:
        NotApplicableError: No output of any box has the shape of an input; no row was run.
    """
    boxes = setup.problem.boxes
    if all(set(sources(box.inputs, box.outputs)) == {None} for box in boxes.values()):
        name, box = next(iter(boxes.items()))
        inputs, outputs = (
            ", ".join(f"{spec.name} {tuple(spec.shape)}" for spec in specs)
            for specs in (box.inputs, box.outputs)
        )
        raise NotApplicableError(
            f"identity: expected a box with an output of the shape of an input, which it follows, got "
            f"{name!r}: {inputs} -> {outputs}. Its derivative would be zero everywhere, as that of "
            "no-gradient: leave identity out."
        )
    return setup.descend(
        _by_autograd(
            setup, lambda box: zo.differentiable(box, tangent=zo.tangents.IdentityTangent(), seed=setup.seed)
        )
    )


def row_rge(setup: Setup) -> Trained:
    """Autograd around the box, whose derivative each row estimates along random directions of its own."""
    rule = _row_rule(setup.problem)

    def stand(box: BlackBoxFunction) -> Stand:
        # Another for each box: with equal draws the gradient through both is wrong.
        place = setup.boxes.index(box)
        seed = Key(setup.seed).generator(place).initial_seed() if place else setup.seed
        return zo.differentiable(box, rule, seed=seed)

    return setup.descend(_by_autograd(setup, stand))


def first_order(setup: Setup) -> Trained:
    """Autograd through the problem's `reference`, in the box's place; first their values are compared."""
    reference: Stand = getattr(setup.problem, "reference")  # noqa: B009 - optional, so the class has none
    boxes = setup.problem.boxes
    references = {
        box: reference if len(boxes) == 1 else partial(reference, name) for name, box in boxes.items()
    }

    def begin() -> None:
        compare(setup.network, setup.objective, setup.batch(0), references)

    if setup.config.replays:  # values are the box's, their derivative is the reference's
        return _with_replays(setup, [zo.tangents.ModelTangent(references[box]) for box in setup.boxes], begin)
    stands = {box: with_derivative(box, stand) for box, stand in references.items()}
    return setup.descend(AutogradGradient(setup.network, setup.objective, stands), begin=begin)


def student(setup: Setup) -> Trained:
    """Autograd around a network that learns the box's values, from training's rows and earlier answers."""
    stands: dict[BlackBoxFunction, zo.box_gradient.DifferentiableBox] = {}

    def stand(box: BlackBoxFunction) -> Stand:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(setup.seed)
            network = student_network(box).to(setup.config.device)
        tangent = zo.tangents.StudentTangent(network, loss=losses.get(box, "squared"))
        stands[box] = zo.differentiable(box, tangent=tangent, seed=setup.seed)
        return stands[box]

    answers = _answers(setup)
    losses = {setup.problem.boxes[name]: student_loss(outputs) for name, (_, outputs) in answers.items()}
    gradient = _by_autograd(setup, stand)

    def learn() -> None:
        for name, (inputs, outputs) in answers.items():
            box = setup.problem.boxes[name]
            seen = [array for spec, array in zip(box.inputs, inputs, strict=True) if spec.differentiable]
            tangent = stands[box].tangent  # the copy that learns
            assert isinstance(tangent, zo.tangents.StudentTangent)
            tangent.fit(seen, outputs, steps=setup.config.prefit)

    return setup.descend(gradient, begin=learn if answers else None)


def tangents(setup: Setup) -> Trained:
    """Autograd around a model of the box, fitted to its values in the rows that training runs anyway."""
    config = setup.config
    gradient = _tangent_gradient(setup, None, limits_of(config))
    answers = _answers(setup)

    def learn() -> None:
        for name, tangent in zip(setup.problem.boxes, gradient.tangents, strict=True):
            if name in answers and isinstance(tangent, zo.tangents.AutoTangent):
                tangent.fit(*answers[name], steps=config.prefit)

    return setup.descend(gradient, begin=learn if answers else None, replayed=config.replays != 0)


def _with_replays(
    setup: Setup, tangents: Sequence[zo.tangents.Tangent], begin: Callable[[], None]
) -> Trained:
    """By tangents that are known, one for each box, which are neither learned nor checked."""
    unchecked = replace(limits_of(setup.config), check_every=None)
    return setup.descend(_tangent_gradient(setup, tangents, unchecked), begin=begin, replayed=True)


def _tangent_gradient(
    setup: Setup, tangents: Sequence[zo.tangents.Tangent] | None, limits: zo.tangents.Limits
) -> zo.TangentGradient:
    """By one tangent for each box, the default ones if None; the run's own boxes share their rows."""
    return zo.TangentGradient(
        setup.network,
        setup.objective,
        boxes=setup.boxes,
        tangent=tangents,
        seed=setup.seed,
        steps=setup.steps,
        process_group=None,
        limits=limits,
    )


def limits_of(config: Config) -> zo.tangents.Limits:
    """A run's limits; where rows are counted the first step is checked, not the first five."""
    limits = zo.tangents.Limits(replays=config.replays)
    if config.clip is not None:
        limits = replace(limits, clip=config.clip)
    return limits if config.rows is None else replace(limits, early=1)


def _answers(setup: Setup) -> dict[str, tuple[Any, Any]]:
    """What boxes have answered before, inputs and outputs by the box's name, on the run's device."""
    boxes, config = setup.problem.boxes, setup.config
    answers = setup.problem.known_answers() if config.prefit else {}
    for name in answers:
        if name not in boxes:
            raise ProblemError(
                f"{type(setup.problem).__name__}.answers: expected names of boxes, got {name!r}. "
                f"{nearest(name, list(boxes))}"
            )
    return {
        name: map_tensors(lambda tensor: tensor.to(config.device), tuple(pair))
        for name, pair in answers.items()
    }


def whole_loss(setup: Setup, kind: str) -> Trained:
    """Finite differences of the whole loss, by a kind of `estimator` with the settings that all have."""
    return setup.descend(loss_gradient(setup, _planned(kind, setup.problem, setup.network)))


def estimator(
    kind: str,
    mu: float,
    *,
    sparsity: zo.estimators.Sparsity | None = None,
    directions: int = 1,
    central: bool = False,
) -> zo.estimators.Estimator[Any]:
    """The estimator of a name.

    Args:
        kind: "cge" and "sparse-cge", one weight after another; "rge" and "sparse-rge", along random
            directions.
        mu: The smoothing parameter.
        sparsity: The sets of those that have some.
        directions: How many, for methods that have some.
        central: Whether differences take both signs.
    """
    if kind in ("cge", "sparse-cge"):
        return zo.CGE(mu, None if kind == "cge" else sparsity, central=central)
    return zo.RGE(mu, directions, central=central, sparsity=sparsity if kind == "sparse-rge" else None)


def loss_gradient(
    setup: Setup, estimator: zo.estimators.Estimator[Any], evaluator: str = "auto"
) -> zo.LossGradient:
    """A `zo.LossGradient` with the run's settings."""
    return zo.LossGradient(
        setup.network,
        setup.objective,
        estimator,
        evaluator=evaluator,
        seed=setup.seed,
        chunk=setup.config.zeroth_order.chunk,
        process_group=setup.process_group,
    )


def student_loss(outputs: Tensor | Sequence[Tensor]) -> str:
    """What a student learns them by: "kl" if they are probabilities, "labels" if one-hot, else "squared".

    Args:
        outputs: A box's answers, `(rows, *shape)` each; rows that are not finite are left out.
    """
    arrays = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if len(arrays) != 1 or arrays[0].ndim < 2 or arrays[0].shape[-1] < 2:
        return "squared"
    answers = arrays[0].flatten(0, -2)
    answers = answers[answers.isfinite().all(dim=1)]
    off = (answers.sum(dim=1) - 1).abs()
    if not len(answers) or bool((answers < 0).any()) or bool((off > ROUNDED).any()):
        return "squared"
    return "labels" if bool(((answers == 0) | (answers == 1)).all()) else "kl"


def student_network(box: BlackBoxFunction, width: int = 128) -> nn.Module:
    """From a box's differentiable inputs to its outputs, for boxes of a few hundred numbers."""
    size_in = sum(math.prod(spec.shape) for spec in box.inputs if spec.differentiable)
    size_out = sum(math.prod(spec.shape) for spec in box.outputs)
    layers = (
        nn.Linear(size_in, width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, size_out),
    )
    shapes = [tuple(spec.shape) for spec in box.outputs]
    if len(shapes) > 1 or sum(spec.differentiable for spec in box.inputs) > 1:
        return nn.Sequential(*layers)
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, shapes[0] or (1,)))


def _by_autograd(setup: Setup, stand: Callable[[BlackBoxFunction], Stand]) -> AutogradGradient:
    return AutogradGradient(setup.network, setup.objective, {box: stand(box) for box in setup.boxes})


def _planned(kind: str, problem: Problem, network: nn.Module) -> zo.estimators.Estimator[Any]:
    settings, size = problem.config.zeroth_order, Parameters(network).size
    some = zo.RandomCoordinates(min(settings.coordinates, size))
    return estimator(
        kind, settings.mu, sparsity=some, directions=settings.directions, central=settings.central
    )


def _row_rule(problem: Problem) -> zo.box_gradient.RowRGE:
    settings = problem.config.zeroth_order
    return zo.box_gradient.RowRGE(settings.input_mu, settings.input_directions, central=settings.central)


def cost_of_queries(gradient: zo.LossGradient, steps: int) -> Cost:
    """Of a gradient of the whole loss, and with all queries by which it may have to be checked."""
    queries = steps * gradient.next_queries()
    most = steps + queries + gradient.most_checks(steps)
    return Cost(steps + queries, queries, most, first=gradient.most_checks(1))


def cost_of_loss(problem: Problem, steps: int, kind: str) -> Cost:
    """Of `whole_loss`."""
    network = problem.network()
    planned = _planned(kind, problem, network)
    gradient = zo.LossGradient(network, problem.objective, planned, chunk=problem.config.zeroth_order.chunk)
    return cost_of_queries(gradient, steps)


def cost_of_tangents(problem: Problem, steps: int) -> Cost:
    """Of `tangents`, with what checks take."""
    limits = limits_of(problem.config)
    checks = limits.checks_within(steps, learns=True)
    most = steps + CONFIRMED * (checks + limits.early - 1)
    return Cost(steps + checks, checks, most, learns=True)


def cost_of_rows(problem: Problem, steps: int) -> Cost:
    """Of `row_rge`, with the queries of each row."""
    config = problem.config
    settings = config.zeroth_order
    queries = settings.input_directions * (2 if settings.central else 1)
    least = steps * (1 + queries)
    # At most, where no step has more than 10,000 calls of a box.
    rows = [
        most_checks(box, queries, config.batch, 10_000 * steps, central=settings.central)
        for box in problem.boxes.values()
    ]
    return Cost(least, 0, least + sum(rows) / config.batch, again=True)


def cost_of_base(problem: Problem, steps: int) -> Cost:
    """Of a method that evaluates the objective once a step."""
    return Cost(steps)


def check_outputs(problem: Problem) -> None:
    """Refuse boxes that no function can stand for in a graph."""
    for box in problem.boxes.values():
        zo.differentiable(box, tangent=zo.tangents.IdentityTangent())


def check_rows(problem: Problem) -> None:
    """Refuse boxes, or settings, by which `row_rge` cannot ask."""
    for box in problem.boxes.values():
        zo.differentiable(box, _row_rule(problem))


def check_tangents(problem: Problem) -> None:
    """Refuse boxes that no tangent can stand for."""
    zo.TangentGradient(problem.network(), problem.objective, boxes=list(problem.boxes.values()))


def tangents_of_boxes(problem: Problem) -> list[str]:
    """Which tangent stands for each box at first, and what the box is taken for."""
    said = []
    for name, box in problem.boxes.items():
        tangent = zo.tangents.AutoTangent(box)
        kinds = " and ".join(type(model).__name__ for model in tangent.models.values())
        said.append(f"Tangent of {name}: {kinds}, for {tangent.taken_for}.")
    return said
