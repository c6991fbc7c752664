"""Where to put the zeroth order in the chain of network and solver: gradients, and training at equal rows.

    python -m benchmarks chain_rule --size ci       smallest, written nowhere
    python -m benchmarks chain_rule --size small    two seeds with the demo's settings

The whole loss from function values (CGE, RGE); the solver's vector-Jacobian products alone (chain); none,
with the identity in their place; tangents learned from probes. First, for one batch and NON's weights, how
near each gradient is to the true one and what it asks of the solver. Then each trains from NON's weights
until it has run as many rows as the preset's ZO-SOL, or taken as many steps as are allowed; RGE with more
and more queries a step. Errors are the lowest mean absolute ones on the validation flows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import zo
from benchmarks import protocol
from benchmarks.wake import CI
from tasks.autograd import AutogradGradient
from tasks.problem import Setup, Trained
from tasks.progress import make_progress
from tasks.runs.folder import Run
from tasks.wake_flow.config import PRESETS
from tasks.wake_flow.methods import METHODS
from tasks.wake_flow.problem import WakeFlow
from tasks.work import setup_of

QUERIES = (8, 32, 96, 384)  # of RGE in a step
DIRECTIONS = (16, 64, 256)  # of chain, for each row and solver step
LEARNING = 8  # batches that a tangent learns from before its gradient is compared
PROBES = 2  # of that tangent
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


def qualities(setup: Setup, start: nn.Module) -> list[Quality]:
    """Every gradient of one batch's loss, at `start`'s weights."""
    problem, config, batch = setup.problem, setup.config, setup.batch(0)
    assert isinstance(problem, WakeFlow)
    solver, objective = problem.box, problem.objective
    exact = copy.deepcopy(start).double()
    derivable = problem.loss_through(problem.solver.step)
    AutogradGradient(exact, derivable, {}).backward((batch[0].double(), batch[1].double()))
    truth = _flat(exact)

    def whole(estimator: zo.estimators.Estimator[Any]) -> Callable[[nn.Module], object]:
        # "stacked" by itself, without the first-use check: its queries are no part of a step
        evaluator = zo.evaluators.Stacked()
        return lambda network: zo.LossGradient(network, objective, estimator, evaluator=evaluator).backward(
            batch
        )

    def around(
        directions: zo.RowRGE | None, tangent: zo.tangents.Tangent | None = None
    ) -> Callable[[nn.Module], object]:
        stand = zo.differentiable(solver, directions, tangent=tangent)
        return lambda network: AutogradGradient(network, objective, {solver: stand}).backward(batch)

    def learned(network: nn.Module) -> None:
        gradient = zo.TangentGradient(
            network, objective, boxes=[solver], tangent=zo.LowRankTangent(), probes=PROBES
        )
        for step in range(1, LEARNING + 1):
            gradient.backward(setup.batch(step))
        network.zero_grad()
        gradient.backward(batch)

    contenders: dict[str, Callable[[nn.Module], object]] = {
        "whole loss, CGE": whole(zo.CGE(config.mu)),
        **{f"whole loss, RGE, {q} queries": whole(zo.RGE(config.mu, q)) for q in QUERIES},
        **{f"chain, {q} directions": around(zo.RowRGE(config.input_mu, q)) for q in DIRECTIONS},
        "identity": around(None, zo.IdentityTangent()),
        f"tangent, after {LEARNING} steps, {PROBES} probes": learned,
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


def trainings(setup: Setup, non: Trained, most: int, folder: Path) -> list[Line]:
    """Every method from NON's weights, for as many rows as the preset's ZO-SOL takes.

    Args:
        setup: Of the seed.
        non: What all start from.
        most: Steps of a training.
        folder: For a run of each.
    """
    config = setup.config
    base = config.batch * config.unroll
    budget = config.steps * base * (1 + config.coordinates)
    chained = config.batch * (config.unroll - 1) * config.input_directions
    contenders: list[tuple[str, str, dict[str, Any], int]] = [
        ("whole loss, sparse CGE", "ZO-SOL", {}, base * (1 + config.coordinates)),
        ("chain", "chain", {}, base + chained),
        ("identity", "identity", {}, base),
        ("tangent", "TAN-SOL small", {}, base),
    ]
    for queries in QUERIES:
        settings = {"estimator": "rge", "directions": queries}
        contenders.append((f"whole loss, RGE, {queries} queries", "ZO-SOL", settings, base * (1 + queries)))
    lines = []
    for number, (name, method, settings, rows) in enumerate(contenders):
        steps = max(1, min(most, budget // rows))
        problem = copy.copy(setup.problem)  # the same box and flows, with settings of its own
        problem.config = replace(config, methods=("NON", method), steps=steps, **settings)
        run = Run.create(folder / str(number), "wake-flow", "benchmark", problem.config, (setup.seed,))
        own = setup_of(problem, run, method, setup.seed, setup.progress, {"NON": non})
        outcome = METHODS[method].train(own).outcome
        spent = outcome.ledger.rows_run
        lines.append(Line(name, setup.seed, steps, spent, outcome.best_validation))
        print(f"seed {setup.seed}, {name:32s} {steps:5d} steps, {spent:9,} rows: ", end="")
        print("no finite error" if outcome.best_validation is None else f"{outcome.best_validation:.4f}")
    return lines


def main(words: Sequence[str]) -> None:
    """Print and write both tables."""
    sizes = {"ci": CI, "small": replace(PRESETS["demo"], coordinates=96)}  # twice the demo's
    parser = protocol.options("chain_rule", __doc__, sizes)
    parser.add_argument("--seeds", type=int, help="1 for ci, 2 otherwise")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--most-steps", type=int, help=f"10 for ci, {MOST_STEPS} otherwise")
    chosen = parser.parse_args(words)
    smallest = chosen.size == "ci"
    most = chosen.most_steps or (10 if smallest else MOST_STEPS)
    config = replace(sizes[chosen.size], methods=("NON",))
    torch.set_num_threads(config.threads)
    problem = WakeFlow(config, folder=chosen.data)
    quality: list[Quality] = []
    lines: list[Line] = []
    with make_progress() as progress, TemporaryDirectory() as place:
        problem.progress = progress
        for seed in range(chosen.seeds or (1 if smallest else 2)):
            folder = Path(place) / str(seed)
            run = Run.create(folder / "start", "wake-flow", "benchmark", config, (seed,))
            setup = setup_of(problem, run, "NON", seed, progress, {})
            non = METHODS["NON"].train(setup)
            quality = quality or qualities(setup, non.network)
            done = non.outcome
            lines.append(Line("NON, the start", seed, done.step, done.ledger.rows_run, done.best_validation))
            lines += trainings(setup, non, most, folder)
    if not smallest:
        results = {"gradients": [asdict(q) for q in quality], "trainings": [asdict(one) for one in lines]}
        to = protocol.path("chain_rule", chosen.size)
        protocol.write("chain_rule", words, {"preset": chosen.size, **results}, to)


def _flat(network: nn.Module) -> torch.Tensor:
    pieces = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
    return torch.cat(pieces)
