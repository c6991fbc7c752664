"""How each method of the wake flow trains: from NON's weights by the shared ones, or on pairs of frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

import zo
from blackbox import Ledger
from tasks import layer_ratios
from tasks import methods as shared
from tasks.autograd import AutogradGradient
from tasks.layer_ratios import Ratios
from tasks.problem import Cost, Method, Setup, Trained
from tasks.runs.journal import Journal
from tasks.runs.result import TrainingOutcome
from tasks.wake_flow.config import Config, family_of, method_name
from tasks.wake_flow.networks import Corrector, NoCorrector

if TYPE_CHECKING:
    from tasks.wake_flow.data import Pairs
    from tasks.wake_flow.problem import WakeFlow

SPARSE = ("sparse-cge", "sparse-rge", "hybrid")
PAIRS, BETA = 32, 1.0  # of PRE, as published: pairs in a step, hold on the correction of the frame before
MIRRORED = 103  # first word of the key's path for these draws; those of the data are 101 and 102
Batch = tuple[Tensor, Tensor]


def src(setup: Setup) -> Trained:
    """SRC: the solver alone, with nothing to train."""
    return Trained(NoCorrector(), TrainingOutcome(setup.stage))


def non(setup: Setup, *, large: bool) -> Trained:
    """NON: on pairs of frames one solver step apart."""
    pairs, count = _problem(setup).pairs, setup.config.non_batch
    return _on_pairs(setup, large, pairs, lambda i: pairs.draw(zo.estimators.Key(setup.seed, i), count))


def pre(setup: Setup, *, large: bool, regular: bool) -> Trained:
    """PRE: on corrections that were fitted to the fine reference beforehand; each pair may come mirrored.

    Args:
        setup: Of the method.
        large: Whether the large network is trained.
        regular: Whether the fit holds on to the correction of the frame before; PRE-SR's does not.
    """
    from tasks.wake_flow import precomputed
    from tasks.wake_flow.data import mirrored

    problem, config = _problem(setup), setup.config
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
    problem, (steps, rate) = _problem(setup), setup.config.steps_of(setup.name)
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
    config = setup.config
    sparsity: zo.estimators.Sparsity | None = None
    found: Ratios | None = None
    if config.estimator in SPARSE:
        sparsity = zo.RandomCoordinates(config.coordinates)
        if config.ratios != "uniform":
            found = ratios_of(setup)
            sparsity = zo.LayerwiseCoordinates(found.layers)
    gradient = shared.loss_gradient(setup, estimator(config, sparsity))
    trained = setup.descend(gradient)
    if found is None:
        return trained
    trained.outcome.ledger.add(Ledger(rows_asked=found.rows, rows_run=found.rows))
    return replace(trained, queries=trained.queries + found.queries)


def estimator(config: Config, sparsity: zo.estimators.Sparsity | None) -> zo.estimators.Estimator[Any]:
    """The estimator that the configuration names, on the sparse set where it takes one."""
    return shared.estimator(
        config.estimator,
        config.mu,
        sparsity=sparsity,
        directions=config.directions,
        central=config.central,
    )


def ratios_of(setup: Setup) -> Ratios:
    """The layer ratios of the network that ZO-SOL starts from, as the configuration asks for them."""
    config, network = setup.config, setup.network

    def find(journal: Journal) -> tuple[zo.pruning.LayerRatios, int]:
        scores = zo.pruning.scores(
            config.ratios,
            network,
            setup.objective,
            setup.batch(0),
            seed=setup.seed,
            journal=journal,
            process_group=setup.process_group,
        )
        size = sum(parameter.numel() for parameter in network.parameters())
        return zo.pruning.layer_ratios(scores, sparsity=1 - config.coordinates / size), scores.queries

    large = "-large" if setup.name.endswith(" large") else ""
    return layer_ratios.kept(setup, f"layer_ratios-seed-{setup.seed}{large}", find)


def first_weights(setup: Setup, large: bool) -> Corrector:
    """The small or the large network with the seed's first weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(setup.seed)
        return _problem(setup).corrector(large=large).to(setup.config.device)


def _problem(setup: Setup) -> WakeFlow:
    return cast("WakeFlow", setup.problem)


Plan = Callable[["WakeFlow", bool, int], Cost]  # (problem, large, steps)


def _nothing(problem: WakeFlow, large: bool, steps: int) -> Cost:
    return Cost()  # the pairs are a part of the data


def _fitted(problem: WakeFlow, large: bool, steps: int) -> Cost:
    config: Config = problem.config
    rows = len(config.train_reynolds) * (config.frames - 1)
    return Cost(rows / (config.batch * config.unroll))


def _whole_loss(problem: WakeFlow, large: bool, steps: int) -> Cost:
    config: Config = problem.config
    sparsity = zo.RandomCoordinates(config.coordinates) if config.estimator in SPARSE else None
    network = problem.corrector(large=large)
    gradient = zo.LossGradient(network, problem.objective, estimator(config, sparsity), chunk=config.chunk)
    return shared.cost_of_queries(gradient, steps)


def _as_shared(name: str) -> Plan:
    known = shared.METHODS[name].cost
    assert known is not None
    return lambda problem, large, steps: known(problem, steps)


def _cost(method: str, plan: Plan, problem: Any, steps: int) -> Cost:  # noqa: ANN401 - a WakeFlow
    """With the steps of the method; layer ratios are not in it."""
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
