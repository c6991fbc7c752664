"""The training of the wake flow's methods: from NON's weights by shared methods, or on pairs of frames."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import zo
from blackbox import Ledger
from tasks.applications.wake_flow import precomputed
from tasks.applications.wake_flow.config import (
    IN_LOOP,
    Config,
    budget_of,
    family_of,
    method_name,
)
from tasks.applications.wake_flow.data import Pairs, mirrored
from tasks.applications.wake_flow.networks import Corrector, NoCorrector
from tasks.methods import by_name
from tasks.methods.autograd import AutogradGradient
from tasks.problem.method import Cost, Method
from tasks.problem.trained import Trained, TrainingOutcome
from tasks.training.setup import Setup

PAIRS, BETA = 32, 1.0  # of PRE, as published: pairs in a step, hold on the correction of the frame before
REPLAYED = ("TAN-SOL", "tangents")  # first order would replay its own solver, which no one counts
MIRRORED = 103  # first word of the key's path for these draws; those of the data are 101 and 102
Batch = tuple[Tensor, Tensor]


def src(setup: Setup) -> Trained:
    """SRC: the solver alone, with nothing to train."""
    return Trained(NoCorrector(), TrainingOutcome(setup.stage))


def non(setup: Setup) -> Trained:
    """NON: on pairs of frames one solver step apart."""
    pairs, count = _problem(setup).pairs, setup.config.non_batch
    return _on_pairs(setup, pairs, lambda i: pairs.draw(zo.estimators.Key(setup.seed, i), count))


def pre(setup: Setup) -> Trained:
    """PRE: on corrections that were fitted to the fine reference beforehand; each pair may come mirrored.

    The fit holds on to the correction of the frame before; PRE-SR's does not.
    """
    problem, config = _problem(setup), setup.config
    counter = setup.progress.counter("fine flows for PRE (PhiFlow)")
    beta = BETA if family_of(setup.name)[0] == "PRE" else 0.0
    pairs = precomputed.corrections(config, problem.flows, problem.box, beta, counter)

    def batch(i: int) -> Batch:
        key = zo.estimators.Key(setup.seed, i)
        frames, reynolds = pairs.draw(key, PAIRS)
        mirror_mask = torch.rand(len(frames), generator=key.generator(MIRRORED)) < 0.5
        turn = mirror_mask.to(frames.device).view(-1, 1, 1, 1, 1)
        return torch.where(turn, mirrored(frames), frames), reynolds

    return _on_pairs(setup, pairs, batch)


def _on_pairs(setup: Setup, pairs: Pairs, batch: Callable[[int], Batch]) -> Trained:
    """Train on pairs of frames, in which the first has been through the solver."""
    problem, network = _problem(setup), first_weights(setup)
    objective = problem.loss_through(lambda velocity, reynolds: velocity)
    steps = setup.config.steps_of(setup.name)
    on_pairs = replace(setup, network=network, steps=steps, batch=batch, objective=objective)
    gradient = AutogradGradient(network, objective, {})
    trained = on_pairs.descend(gradient, figures=lambda: {"rows": pairs.rows})
    trained.outcome.ledger.add(Ledger(rows_asked=pairs.rows, rows_run=pairs.rows, rows_failed=pairs.failed))
    return trained


def in_loop(setup: Setup) -> Trained:
    """A shared method, from NON's weights (or as the configuration says), with its own steps and pace."""
    problem, config = _problem(setup), setup.config
    windows, rate = config.pace_of(setup.name)
    network = first_weights(setup)
    if config.start == "NON" and setup.trained:  # a dry run tries the method with none trained before it
        first_stage = method_name("NON", family_of(setup.name)[1])
        network = cast(Corrector, copy.deepcopy(setup.trained[first_stage].network))
    started = replace(
        setup,
        network=network,
        steps=steps_in_loop(problem, setup.name),
        batch=partial(problem.windows, setup.seed, count=windows),
        learning_rate=rate,
    )
    problem = copy.copy(problem)
    problem.config = _spent(config, setup.name)
    return _shared(setup.name, config).train(replace(started, problem=problem))


def _spent(config: Config, method: str) -> Config:
    """The settings of a method: one without a model of the box replays nothing, a budget is of rows."""
    if family_of(method)[0] not in REPLAYED:
        config = replace(config, replays=0)
    if budget_of(method) is not None:
        config = replace(config, rows=budget_of(method))
    return config


def steps_in_loop(problem: Any, method: str) -> int:
    """Optimiser steps of a method in the loop: the settings' steps, or all that its budget has room for.

    The method gives the cost of steps beforehand, with checks. For a method that learns there are four more
    evaluations, for checks that find fault and are repeated, at the same distance and nearer.
    """
    config, rows = problem.config, budget_of(method)
    if rows is None:
        return config.steps_of(method)
    batch, _ = config.pace_of(method)

    def taken(steps: int) -> float:
        cost = _cost_of_steps(problem, steps, method)
        return config.unroll * (config.batch * cost.evaluations + 4 * batch * cost.learns)

    return max(1, bisect_right(range(1, rows // (batch * config.unroll) + 1), rows, key=taken))


def first_weights(setup: Setup) -> Corrector:
    """The method's network, small or large, with the seed's first weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(setup.seed)
        large = family_of(setup.name)[1]
        return _problem(setup).corrector(large=large).to(setup.config.device)


def _problem(setup: Setup) -> Any:
    return setup.problem


def _shared(method: str, config: Config) -> Method:
    """Return the shared method that trains a method in the loop."""
    named = {"FO-SOL": "first-order", "chain": "row-rge", "identity": "identity", "TAN-SOL": "tangents"}
    return by_name.METHODS[named.get(family_of(method)[0], config.estimator)]


def variant(name: str) -> Method | None:
    """The method of a name with a budget of rows behind it; None for another name."""
    base, at, _ = name.partition("@")  # the settings have refused what is no number of rows behind it
    if not at or base not in METHODS:
        return None
    return replace(METHODS[base], cost=partial(_cost_in_loop, method=name))


def _cost_of_pairs(problem: Any, steps: int, method: str) -> Cost:
    """NON's pairs are a part of the data, PRE's corrections are fitted along the training flows."""
    config: Config = problem.config
    rows = 0 if family_of(method)[0] == "NON" else len(config.train_reynolds) * (config.frames - 1)
    return Cost(rows / (config.batch * config.unroll))


def _cost_in_loop(problem: Any, steps: int, method: str) -> Cost:
    """Return the cost of all steps that the method takes."""
    return _cost_of_steps(problem, steps_in_loop(problem, method), method)


def _cost_of_steps(problem: Any, steps: int, method: str) -> Cost:
    """Return the cost of steps with a method's network and windows, in evaluations of the settings' batch."""
    config: Config = problem.config
    as_trained, cost, (batch, _) = copy.copy(problem), _shared(method, config).cost, config.pace_of(method)
    as_trained.config = replace(_spent(config, method), batch=batch)
    as_trained.network = partial(problem.corrector, large=family_of(method)[1])
    assert cost is not None
    of_shared, share = cost(as_trained, steps), batch / config.batch
    most = None if of_shared.most is None else share * of_shared.most
    return replace(of_shared, evaluations=share * of_shared.evaluations, most=most)


def _methods() -> dict[str, Method]:
    families = {
        "NON": "On pairs of frames, without the solver in the loop.",
        "PRE": "On corrections fitted to the reference beforehand.",
        "PRE-SR": "On corrections fitted frame by frame.",
        "FO-SOL": "In the loop, with the solver's derivative.",
        "ZO-SOL": "In the loop, from values of the whole loss.",
        "chain": "In the loop, the solver's derivative from values around its inputs.",
        "identity": "In the loop, with one for the solver's derivative.",
        "TAN-SOL": "In the loop, with a model of the solver that is fitted to its values.",
    }
    methods = {"SRC": Method("The solver alone.", src, lambda problem, steps: Cost())}
    for large in (False, True):
        size = " The large network." if large else ""
        for family, about in families.items():
            name, looped = method_name(family, large), family in IN_LOOP
            train = in_loop if looped else non if family == "NON" else pre
            cost = partial(_cost_in_loop if looped else _cost_of_pairs, method=name)
            learns = family == "TAN-SOL"  # by the shared tangents
            methods[name] = Method(about + size, train, cost, learns_answers=learns, replays=learns)
    return methods


METHODS = _methods()
