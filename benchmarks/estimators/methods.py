"""The contenders of `zo`: each makes, for a number of queries a step, what fills `.grad` of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

import zo
from benchmarks.estimators.problems import Batch, Setting, size

Fill: TypeAlias = Callable[[Batch], object]  # adds an estimate for a batch to `.grad`
MU = 1e-3  # for weights and velocities alike, both of order .1 to 1, in float32
CHUNK = 128  # queries that run together
DISTRIBUTIONS: tuple[Literal["gaussian", "sphere", "rademacher"], ...] = ("gaussian", "sphere", "rademacher")


@dataclass(frozen=True)
class Method:
    """One way to estimate a gradient.

    Attributes:
        name: for tables.
        start: `start(setting, network, queries, seed)`, the queries of one step; None where it cannot
            be had for that many.
        kind: its colour in the picture.
        needs_box: whether it works at a black box alone.
    """

    name: str
    start: Callable[[Setting, nn.Module, int, int], Fill | None]
    kind: str
    needs_box: bool = False


def weight_methods() -> list[Method]:
    """Through `LossGradient`: the weights are moved, one query is one perturbed network on the batch."""
    methods = [
        Method("CGE, all", partial(_weights, _all_coordinates), "CGE"),
        Method("CGE, random set, forward", partial(_weights, _random_set), "CGE"),
        Method("CGE, random set, central", partial(_weights, _random_set_central), "CGE"),
    ]
    for distribution in DISTRIBUTIONS:
        for scheme in ("forward", "antithetic"):
            start = partial(_weights, partial(_directions, distribution, scheme))
            methods.append(Method(f"RGE, {distribution}, {scheme}", start, "RGE"))
    methods.append(Method("hybrid, half a random set", partial(_weights, _hybrid_random), "hybrid"))
    methods.append(Method("hybrid, the biases", partial(_weights, _hybrid_biases), "hybrid"))
    return methods


def row_methods() -> list[Method]:
    """Through `differentiable`: a box's inputs are moved, one query is one perturbed input of every row.

    So a query costs as many rows of the box as one of `weight_methods` on the same batch, and gives
    one scalar for each row, not one for all.
    """
    return [
        Method(f"per row, {name}", partial(_rows, estimator), "per row", needs_box=True)
        for name, estimator in {
            "gaussian, forward": lambda q: zo.RGE(MU, q),
            "gaussian, antithetic": lambda q: zo.RGE(MU, q // 2, central=True),
            "orthogonal, forward": lambda q: zo.RowRGE(MU, q),
            "orthogonal, antithetic": lambda q: zo.RowRGE(MU, q // 2, central=True),
            "low frequencies, forward": lambda q: zo.RowRGE(MU, q, basis=zo.DCTBasis(4)),
        }.items()
    ]


def autograd() -> Method:
    """First order, for reference: no queries."""

    def start(setting: Setting, network: nn.Module, queries: int, seed: int) -> Fill:
        return lambda batch: setting.loss(setting.exact, network, batch).mean().backward()

    return Method("autograd (first order)", start, "autograd")


def loss_gradient(
    setting: Setting,
    network: nn.Module,
    estimator: zo.estimators.Estimator[Any],
    seed: int = 0,
    fast: bool = True,
) -> zo.LossGradient:
    """Without the first-use check, which would cost queries of its own: `times` compares the evaluators."""
    evaluator = zo.evaluators.Stacked() if fast else zo.evaluators.Loop()
    return zo.LossGradient(network, setting.objective, estimator, evaluator=evaluator, seed=seed, chunk=CHUNK)


def _weights(
    plan: Callable[[int, nn.Module], zo.estimators.Estimator[Any] | None],
    setting: Setting,
    network: nn.Module,
    queries: int,
    seed: int,
) -> Fill | None:
    estimator = plan(queries, network)
    if estimator is None:
        return None
    gradient = loss_gradient(setting, network, estimator, seed)
    if gradient.queries() != queries:
        raise AssertionError(f"{estimator}: {queries} queries were asked for, {gradient.queries()} planned")
    return gradient.backward


def _rows(
    plan: Callable[[int], Any], setting: Setting, network: nn.Module, queries: int, seed: int
) -> Fill | None:
    if setting.box is None:
        return None
    solver = zo.differentiable(setting.box, plan(queries), seed=seed)
    return lambda batch: setting.loss(solver, network, batch).mean().backward()


def _all_coordinates(queries: int, network: nn.Module) -> zo.CGE | None:
    """With as many queries as weights forward, with twice as many central."""
    if queries not in (size(network), 2 * size(network)):
        return None
    return zo.CGE(MU, central=queries != size(network))


def _random_set(queries: int, network: nn.Module) -> zo.CGE | None:
    return zo.CGE(MU, zo.RandomCoordinates(queries)) if queries < size(network) else None


def _random_set_central(queries: int, network: nn.Module) -> zo.CGE | None:
    if queries // 2 >= size(network):
        return None
    return zo.CGE(MU, zo.RandomCoordinates(queries // 2), central=True)


def _directions(
    distribution: Literal["gaussian", "sphere", "rademacher"],
    scheme: Literal["forward", "antithetic"],
    queries: int,
    network: nn.Module,
) -> zo.RGE:
    # On the sphere a step is mu long in all: this one's entries are those of the others.
    mu = MU * math.sqrt(size(network)) if distribution == "sphere" else MU
    return zo.RGE(mu, queries // (1 if scheme == "forward" else 2), distribution, scheme != "forward")


def _hybrid_random(queries: int, network: nn.Module) -> zo.Hybrid:
    half = zo.CGE(MU, zo.RandomCoordinates(queries // 2))
    return zo.Hybrid(half, zo.RGE(MU, queries - queries // 2))


def _hybrid_biases(queries: int, network: nn.Module) -> zo.Hybrid | None:
    parameters = zo.estimators.Parameters(network)
    places = zip(parameters.names, parameters.starts, parameters.tensors, strict=True)
    biases = [torch.arange(at, at + t.numel()) for name, at, t in places if name.endswith("bias")]
    chosen = zo.FixedCoordinates(torch.cat(biases))
    left = queries - chosen.count(parameters)
    return zo.Hybrid(zo.CGE(MU, chosen), zo.RGE(MU, left)) if left > 0 else None
