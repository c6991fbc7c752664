"""Where to put the zeroth order in the chain of network and solver: gradients, and training at equal rows.

    python -m benchmarks.chain_rule                two seeds at the demo's size
    python -m benchmarks.chain_rule --size ci      smallest, written nowhere

The whole loss from function values (CGE, RGE); the solver's vector-Jacobian products alone (chain); none,
with the identity in their place; tangents learned from probes. First, for one batch and NON's weights, how
near each gradient is to the true one and what it asks of the solver. Then each trains from NON's weights
until it has run as many rows as the preset's ZO-SOL, or taken as many steps as are allowed; RGE with more
and more queries a step. Errors are the lowest mean absolute ones on the validation flows.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zo
from benchmarks.protocol import write
from benchmarks.wake_sizes import SIZES, setups
from tasks import methods as shared
from tasks.autograd import AutogradGradient
from tasks.methods import Setup, Trained
from tasks.wake_flow import methods
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.problem import WakeFlow
from tasks.wake_flow.rollout import window_loss

QUERIES = (8, 32, 96, 384)  # of RGE in a step
DIRECTIONS = (16, 64, 256)  # of chain, for each row and solver step
LEARNING = 8  # batches that a tangent learns from before its gradient is compared
MOST_STEPS = 1200  # of a training; what costs few rows would go on for hours


@dataclass(frozen=True)
class Quality:
    """A gradient beside the true one: what it is, its cosine and relative error, and the rows it took."""

    gradient: str
    cosine: float
    error: float
    rows: int


@dataclass(frozen=True)
class Line:
    """A training: what was trained how, its steps and rows, and the lowest validation error."""

    method: str
    seed: int
    steps: int
    rows: int
    error: float | None


def qualities(setup: Setup, start: Corrector) -> list[Quality]:
    """Every gradient of one batch's loss, at `start`'s weights."""
    problem = setup.problem
    assert isinstance(problem, WakeFlow)
    config, solver, scale = setup.config, problem.solver, problem.scales.velocity
    batch = setup.batch(0)
    exact = copy.deepcopy(start).double()
    doubles = batch[0].double(), batch[1].double()
    AutogradGradient(exact, window_loss(solver.step, scale), {}).backward(doubles)
    truth = _flat(exact)
    objective = window_loss(solver, scale)

    def whole(estimator: zo.estimators.Estimator[Any]) -> Callable[[Corrector], None]:
        # "stacked" by itself, without the first-use check: its queries are no part of a step
        return lambda network: _backward(
            zo.LossGradient(network, objective, estimator, evaluator=zo.evaluators.Stacked()), batch
        )

    def around(
        directions: zo.RowRGE | None, tangent: zo.tangents.Tangent | None = None
    ) -> Callable[[Corrector], None]:
        box = zo.differentiable(solver, directions, tangent=tangent)
        loss = window_loss(box, scale)
        return lambda network: _backward(AutogradGradient(network, loss, {}), batch)

    def learned(network: Corrector) -> None:
        gradient = zo.TangentGradient(
            network, objective, boxes=[solver], tangent=zo.LowRankTangent(),
            probes=config.probes,
        )  # fmt: skip
        for step in range(1, LEARNING + 1):
            gradient.backward(setup.batch(step))
        network.zero_grad()
        gradient.backward(batch)

    contenders: dict[str, Callable[[Corrector], None]] = {
        "whole loss, CGE": whole(zo.CGE(config.mu)),
        **{f"whole loss, RGE, {q} queries": whole(zo.RGE(config.mu, q)) for q in QUERIES},
        **{f"chain, {q} directions": around(zo.RowRGE(config.input_mu, q)) for q in DIRECTIONS},
        "identity": around(None, zo.IdentityTangent()),
        f"tangent, after {LEARNING} steps, {config.probes} probes": learned,
    }
    found = []
    for name, backward in contenders.items():
        network, before = copy.deepcopy(start), solver.ledger.copy()
        backward(network)
        mine = _flat(network)
        cosine = torch.nn.functional.cosine_similarity(mine, truth, dim=0).item()
        error = ((mine - truth).norm() / truth.norm()).item()
        found.append(Quality(name, cosine, error, solver.ledger.since(before).rows_run))
        print(f"{name:40s} cosine {cosine:6.3f}, error {error:7.3f}, {found[-1].rows:8,} rows")
    return found


def trainings(setup: Setup, start: Corrector, most: int) -> list[Line]:
    """Every method from `start`'s weights, for as many rows as the preset's ZO-SOL takes."""
    config = setup.config
    base = config.batch * config.unroll
    budget = config.zo_steps * base * (1 + config.coordinates)
    chained = config.batch * (config.unroll - 1) * config.input_directions
    contenders: list[tuple[str, Callable[[Setup], Trained], int]] = [
        ("whole loss, sparse CGE", shared.sparse_cge, base * (1 + config.coordinates)),
        ("chain", shared.row_rge, base + chained),
        ("identity", shared.identity, base),
        ("tangent", shared.tangents, base * (1 + config.probes)),
    ]
    for queries in QUERIES:
        rule = zo.RGE(config.mu, queries)
        contenders.append((f"whole loss, RGE, {queries} queries", _along(rule), base * (1 + queries)))
    lines = []
    for name, method, rows in contenders:
        steps = max(1, min(most, budget // rows))
        own = replace(
            setup,
            name=name.replace(",", ""),
            network=copy.deepcopy(start),
            steps=steps,
            learning_rate=config.zo_learning_rate,
        )
        outcome = method(own).outcome
        ran = outcome.ledger.rows_run
        lines.append(Line(name, setup.seed, steps, ran, outcome.best_validation))
        print(f"seed {setup.seed}, {name:32s} {steps:5d} steps, {ran:9,} rows: ", end="")
        print("no finite error" if outcome.best_validation is None else f"{outcome.best_validation:.4f}")
    return lines


def main() -> None:
    """Print and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--size", choices=("ci", "demo", "small"), default="demo")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--most-steps", type=int, default=MOST_STEPS)
    chosen = parser.parse_args()
    quality: list[Quality] = []
    lines: list[Line] = []
    with setups(SIZES[chosen.size], tuple(range(chosen.seeds)), chosen.data) as each:
        for setup in each:
            trained = methods.non(setup, large=False)
            start, done = trained.network, trained.outcome
            assert isinstance(start, Corrector)
            quality = quality or qualities(setup, start)
            lines.append(
                Line("NON, the start", setup.seed, done.step, done.ledger.rows_run, done.best_validation)
            )
            lines += trainings(setup, start, chosen.most_steps)
    if chosen.size != "ci":
        results = {"gradients": [asdict(q) for q in quality], "trainings": [asdict(one) for one in lines]}
        write("chain_rule", {"size": chosen.size, **results})


def _backward(gradient: shared.Gradient, batch: tuple[Tensor, Tensor]) -> None:
    gradient.backward(batch)


def _along(rule: zo.RGE) -> Callable[[Setup], Trained]:
    return lambda setup: setup.descend(shared.loss_gradient(setup, rule))


def _flat(network: Corrector) -> Tensor:
    pieces = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
    return torch.cat(pieces)


if __name__ == "__main__":
    main()
