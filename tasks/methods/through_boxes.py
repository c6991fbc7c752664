"""The methods of all problems that go through the boxes, or past them; what they cost and refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import zo
from blackbox import BlackBoxFunction
from blackbox.checks import nearest
from tasks.configuration import Config
from tasks.errors import NotApplicableError, ProblemError
from tasks.methods.autograd import AutogradGradient, Stand, values_alone
from tasks.methods.in_rounds import costs_nothing, further
from tasks.methods.problem_reference import compare, with_derivative
from tasks.problem.method import Cost
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained
from tasks.training.setup import Setup
from zo.batches import map_tensors
from zo.box_gradient.differentiable_box import most_checks
from zo.estimators import Key
from zo.evaluators.state import Snapshot
from zo.tangents.models.alike import AlikeTangent
from zo.tangents.models.contest import ContestTangent
from zo.tangents.tangent import sources

CONFIRMED = 4  # queries that a check takes at most, as a rule, where it finds fault
ZEROS = 3  # first steps of no-gradient with gradients of exactly zero, after which no other is waited for


def no_gradient(setup: Setup) -> Trained:
    """Unrolled through the box, the gradient cut there (NOG): is the box's derivative needed at all?"""
    stands = {box: values_alone(box) for box in setup.boxes}
    alone = AutogradGradient(setup.network, setup.objective, stands, ZEROS)
    if not setup.config.replays:
        return setup.descend(alone)

    def begin() -> None:
        """See that there is a way beside the box: a gradient of zero would train nothing, step by step."""
        start, step = Snapshot(setup.network), 0
        while alone.flat:
            alone.backward(setup.batch(step))
            start.restore()
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
        by_autograd(
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

    return setup.descend(by_autograd(setup, stand))


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


def tangents(setup: Setup) -> Trained:
    """Autograd around a model of the box, fitted to its values in the rows that training runs anyway."""
    gradient, begin = _of_tangents(setup, setup.config.replays)
    return setup.descend(gradient, begin=begin, replayed=setup.config.replays != 0)


def population(setup: Setup) -> Trained:
    """Networks at several rates and one through the model; boxes are asked at the best one's weights."""
    gradient, begin = _of_tangents(setup, setup.config.replays or None)
    adam = torch.optim.Adam(setup.network.parameters(), lr=setup.learning_rate)
    fresh = partial(further, setup) if costs_nothing(setup) else None
    several = zo.Population(
        gradient,
        adam,
        steps=setup.steps,
        fresh=fresh,
        factors=setup.config.rates,
        surrogate=setup.config.surrogate,
    )
    return setup.descend(gradient, optimizer=adam, begin=begin, replayed=True, population=several)


def _of_tangents(setup: Setup, replays: int | None) -> tuple[zo.TangentGradient, Callable[[], None] | None]:
    """A gradient by the default's tangents, and a function that lets them learn before the first step.

    Args:
        setup: The setup of the method.
        replays: The setting of `zo.tangents.Limits`.
    """
    config = setup.config
    gradient = _tangent_gradient(setup, None, replace(limits_of(config), replays=replays))
    answers = answers_of(setup)

    def learn() -> None:
        for name, tangent in zip(setup.problem.boxes, gradient.tangents, strict=True):
            if name in answers:
                assert isinstance(tangent, zo.tangents.AutoTangent | AlikeTangent | ContestTangent)
                tangent.fit(*answers[name], steps=config.prefit)

    return gradient, learn if answers else None


def _with_replays(
    setup: Setup, tangents: Sequence[zo.tangents.Tangent], begin: Callable[[], None]
) -> Trained:
    """Train by tangents that are known, one for each box, which are neither learned nor checked."""
    unchecked = replace(limits_of(setup.config), check_every=None)
    return setup.descend(_tangent_gradient(setup, tangents, unchecked), begin=begin, replayed=True)


def _tangent_gradient(
    setup: Setup, tangents: Sequence[zo.tangents.Tangent] | None, limits: zo.tangents.Limits
) -> zo.TangentGradient:
    """Make a gradient of one tangent for each box (None: the default's); the run's boxes share their rows."""
    priors = [setup.problem.prior(name) for name in setup.problem.boxes]
    if tangents is None and any(prior is not None for prior in priors):
        pairs = zip(setup.boxes, priors, strict=True)
        tangents = [zo.tangents.AutoTangent(box, setup.seed, prior=prior) for box, prior in pairs]
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


def answers_of(setup: Setup) -> dict[str, tuple[Any, Any]]:
    """Return the boxes' earlier answers, inputs and outputs by the box's name, on the run's device."""
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


def by_autograd(setup: Setup, stand: Callable[[BlackBoxFunction], Stand]) -> AutogradGradient:
    """A gradient by what a function makes for each box to stand in its place."""
    return AutogradGradient(setup.network, setup.objective, {box: stand(box) for box in setup.boxes})


def _row_rule(problem: Problem) -> zo.box_gradient.RowRGE:
    settings = problem.config.zeroth_order
    return zo.box_gradient.RowRGE(settings.input_mu, settings.input_directions, central=settings.central)


def cost_of_tangents(problem: Problem, steps: int) -> Cost:
    """Return the cost of `tangents`, with the checks."""
    limits = limits_of(problem.config)
    checks = limits.checks_within(steps, learns=True)
    most = steps + CONFIRMED * (checks + limits.early - 1)
    return Cost(steps + checks, checks, most, learns=True)


def cost_of_rows(problem: Problem, steps: int) -> Cost:
    """Return the cost of `row_rge`, with the queries of each row."""
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
    """Return the cost of a method that evaluates the objective once a step."""
    return Cost(steps)


def check_outputs(problem: Problem) -> None:
    """Refuse boxes that no function can stand for in a graph."""
    for box in problem.boxes.values():
        zo.differentiable(box, tangent=zo.tangents.IdentityTangent())


def check_rows(problem: Problem) -> None:
    """Refuse boxes, or settings, that `row_rge` cannot work with."""
    for box in problem.boxes.values():
        zo.differentiable(box, _row_rule(problem))


def check_tangents(problem: Problem) -> None:
    """Refuse boxes that no tangent can stand for."""
    zo.TangentGradient(problem.network(), problem.objective, boxes=list(problem.boxes.values()))


def tangents_of_boxes(problem: Problem) -> list[str]:
    """Name the first tangent of each box, and the structure that the box is taken for."""
    sentences = []
    for name, box in problem.boxes.items():
        tangent = zo.tangents.AutoTangent(box, prior=problem.prior(name))
        models = tangent.models.values()
        kinds = " and ".join(type(m).__name__ + (" above a prior" if m.prior else "") for m in models)
        sentences.append(f"Tangent of {name}: {kinds}, for {tangent.taken_for}.")
    return sentences
