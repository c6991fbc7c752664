"""How each method of the wake flow trains: from NON's weights by the shared ones, or on pairs of frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import zo
from blackbox import Ledger
from tasks import methods as shared
from tasks.autograd import AutogradGradient
from tasks.problem import Cost, Method, Setup, Trained
from tasks.runs.result import TrainingOutcome
from tasks.wake_flow import precomputed
from tasks.wake_flow.config import Config, family_of, method_name
from tasks.wake_flow.coupling import Coupling, problem_of
from tasks.wake_flow.data import Pairs, mirrored
from tasks.wake_flow.networks import Corrector, NoCorrector

PAIRS, BETA = 32, 1.0  # of PRE, as published: pairs in a step, hold on the correction of the frame before
MIRRORED = 103  # first word of the key's path for these draws; those of the data are 101 and 102
Batch = tuple[Tensor, Tensor]


def src(setup: Setup) -> Trained:
    """SRC: the solver alone, with nothing to train."""
    return Trained(NoCorrector(), TrainingOutcome(setup.stage))


def non(setup: Setup, *, large: bool) -> Trained:
    """NON: on pairs of frames one solver step apart."""
    pairs, count = problem_of(setup).pairs, setup.config.non_batch
    return _on_pairs(setup, large, pairs, lambda i: pairs.draw(zo.estimators.Key(setup.seed, i), count))


def pre(setup: Setup, *, large: bool, regular: bool) -> Trained:
    """PRE: on corrections that were fitted to the fine reference beforehand; each pair may come mirrored.

    Args:
        setup: Of the method.
        large: Whether the large network is trained.
        regular: Whether the fit holds on to the correction of the frame before; PRE-SR's does not.
    """
    problem, config = problem_of(setup), setup.config
    counter = setup.progress.counter("fine flows for PRE (PhiFlow)")
    beta = BETA if regular else 0.0
    pairs = precomputed.corrections(config, problem.flows, problem.box, beta, counter)

    def batch(i: int) -> Batch:
        key = zo.estimators.Key(setup.seed, i)
        frames, reynolds = pairs.draw(key, PAIRS)
        chosen = torch.rand(len(frames), generator=key.generator(MIRRORED)) < 0.5
        turn = chosen.to(frames.device).view(-1, 1, 1, 1, 1)
        return torch.where(turn, mirrored(frames), frames), reynolds

    return _on_pairs(setup, large, pairs, batch)


def _on_pairs(setup: Setup, large: bool, pairs: Pairs, batch: Callable[[int], Batch]) -> Trained:
    """Train on pairs of frames, in which the first has been through the solver."""
    problem, (steps, rate) = problem_of(setup), setup.config.steps_of(setup.name)
    network = first_weights(setup, large)
    objective = problem.loss_through(lambda velocity, reynolds: velocity)
    own = replace(setup, network=network, steps=steps, learning_rate=rate, batch=batch, objective=objective)
    gradient = AutogradGradient(network, objective, {})
    found = own.descend(gradient, figures=lambda: {"rows": pairs.rows})
    found.outcome.ledger.add(Ledger(rows_asked=pairs.rows, rows_run=pairs.rows, rows_failed=pairs.failed))
    return found


def in_loop(setup: Setup, *, large: bool, train: Callable[[Setup], Trained]) -> Trained:
    """A shared method, from NON's weights (or as the configuration says), with its own steps and rate."""
    steps, rate = setup.config.steps_of(setup.name)
    network = first_weights(setup, large)
    if setup.config.start == "NON":
        network = cast(Corrector, copy.deepcopy(setup.trained[method_name("NON", large)].network))
    return train(replace(setup, network=network, steps=steps, learning_rate=rate))


def zo_sol(setup: Setup) -> Trained:
    """ZO-SOL: the gradient of the whole loss, the solver a black box, by the estimator that is configured."""
    return shared.whole_loss(setup, setup.config.estimator)


def first_weights(setup: Setup, large: bool) -> Corrector:
    """The small or the large network with the seed's first weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(setup.seed)
        return problem_of(setup).corrector(large=large).to(setup.config.device)


Plan = Callable[[Coupling, bool, int], Cost]  # (problem, large, steps)


def _nothing(problem: Coupling, large: bool, steps: int) -> Cost:
    return Cost()  # the pairs are a part of the data


def _fitted(problem: Coupling, large: bool, steps: int) -> Cost:
    config: Config = problem.config
    rows = len(config.train_reynolds) * (config.frames - 1)
    return Cost(rows / (config.batch * config.unroll))


def _whole_loss(problem: Coupling, large: bool, steps: int) -> Cost:
    config: Config = problem.config
    some = zo.RandomCoordinates(config.coordinates)
    rule = shared.estimator(
        config.estimator, config.mu, sparsity=some, directions=config.directions, central=config.central
    )
    network = problem.corrector(large=large)
    gradient = zo.LossGradient(network, problem.objective, rule, chunk=config.chunk)
    return shared.cost_of_queries(gradient, steps)


def _as_shared(name: str) -> Plan:
    known = shared.METHODS[name].cost
    assert known is not None
    return lambda problem, large, steps: known(problem, steps)


def _cost(method: str, plan: Plan, problem: Any, steps: int) -> Cost:  # noqa: ANN401 - a Coupling
    """With the steps of the method."""
    return plan(problem, family_of(method)[1], problem.config.steps_of(method)[0])


def _methods() -> dict[str, Method]:
    families: dict[str, tuple[str, Callable[..., Trained], Plan]] = {
        "NON": ("On pairs of frames, without the solver in the loop.", non, _nothing),
        "PRE": ("On corrections fitted to the reference beforehand.", partial(pre, regular=True), _fitted),
        "PRE-SR": ("On corrections fitted frame by frame.", partial(pre, regular=False), _fitted),
        "FO-SOL": (
            "In the loop, with the solver's derivative.",
            partial(in_loop, train=shared.first_order),
            _as_shared("first-order"),
        ),
        "ZO-SOL": (
            "In the loop, from values of the whole loss.",
            partial(in_loop, train=zo_sol),
            _whole_loss,
        ),
        "chain": (
            "In the loop, the solver's derivative from values around its inputs.",
            partial(in_loop, train=shared.row_rge),
            _as_shared("row-rge"),
        ),
        "identity": (
            "In the loop, with one for the solver's derivative.",
            partial(in_loop, train=shared.identity),
            _as_shared("identity"),
        ),
        "TAN-SOL": (
            "In the loop, with a model of the solver that is fitted to its values.",
            partial(in_loop, train=shared.tangents),
            _as_shared("tangents"),
        ),
    }
    found = {"SRC": Method("The solver alone.", src, lambda problem, steps: Cost())}
    for large in (False, True):
        size = " The large network." if large else ""
        for family, (about, train, plan) in families.items():
            name = method_name(family, large)
            found[name] = Method(about + size, partial(train, large=large), partial(_cost, name, plan))
    return found


METHODS = _methods()
