"""Microseconds, error and memory of a query: contenders in turn, on the same coordinates of one block."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

import zo
from benchmarks.protocol import Spread, spreads
from benchmarks.query_speed.baselines import InPlace, Published
from benchmarks.query_speed.problems import Block, Timed
from blackbox import BlackBoxError
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.state import Snapshot
from zo.execution.memory import measured
from zo.perturbation import Coordinates

BASELINE = "published"
IN_PLACE = "in place"
LAST = "in place, channels last"
DIFFERENCE = "difference"
GRAPHS = "difference, CUDA graphs"
# Relative to the float64 differences, over the coordinates of a block, beside the rounding of a loss. What
# rounding loses is within it; a wrong evaluator is not.
SAME = 0.25

TOGETHER = 8  # queries of one tensor that follow each other


class WrongAnswerError(BlackBoxError, RuntimeError):
    """A contender's differences are not those of float64, so its time is of no interest."""


@dataclass(frozen=True)
class Contender:
    """An evaluator and how many queries it is given at once, of which it has its time."""

    evaluator: Evaluator
    queries: int


def contenders(timed: Timed, names: tuple[str, ...], together: int = TOGETHER) -> dict[str, Contender]:
    """The contenders of these names, made for a problem.

    Args:
        timed: the problem.
        names: of those above; "difference" is what "auto" takes for an `OutputLoss`.
        together: queries that "difference" is given at once.
    """
    makers = {
        BASELINE: lambda: Contender(Published(timed.chain), min(2, together)),
        IN_PLACE: lambda: Contender(InPlace(timed.chain), min(2, together)),
        LAST: lambda: Contender(InPlace(timed.chain, torch.channels_last), min(2, together)),
        "loop": lambda: Contender(zo.evaluators.Loop(), 1),
        "stacked": lambda: Contender(zo.evaluators.Stacked(), min(4, together)),
        DIFFERENCE: lambda: Contender(zo.evaluators.Difference(), together),
        GRAPHS: lambda: Contender(zo.evaluators.Difference(graphs=True), together),
    }
    return {name: makers[name]() for name in names}


@dataclass
class BlockTimes:
    """What was measured on a block.

    Attributes:
        block: its name.
        weights: how many it has.
        microseconds: contender -> of a query, over the rounds.
        errors: contender -> of the differences of losses, relative to float64 ones at the same coordinates
            and steps: |found - true| / |true| over them.
        peak: contender -> bytes of tensors alive at once, those of the network and batch not counted.
    """

    block: str
    weights: int
    microseconds: dict[str, Spread] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def measure(
    timed: Timed, block: Block, contenders: Mapping[str, Contender], rounds: int, checked: int
) -> BlockTimes:
    """Time the contenders in turn, after holding their answers against float64.

    Args:
        timed: the problem.
        block: where the weights are.
        contenders: by name.
        rounds: after one to warm up.
        checked: coordinates whose differences are held against float64.

    Raises:
        WrongAnswerError: a contender's answers are wrong.
    """
    problem = timed.problem
    device = problem.parameters.tensors[0].device
    before = Snapshot(problem.network)
    times = BlockTimes(block.name, block.weights)
    runs: dict[str, Callable[[], object]] = {}
    truth = _true_differences(timed, block, checked)
    base = timed.base()
    before.restore()
    # Of two losses that are subtracted; a weight may do less than that, as a key's bias does nothing at all.
    rounding = 4 * torch.finfo(base.dtype).eps * float(base.abs().mean()) * checked**0.5
    for name, contender in contenders.items():
        queries = timed.queries(block, checked)
        off = (_differences(contender, timed, queries, base).cpu() - truth).norm()
        before.restore()
        lost = times.errors[name] = float(off / truth.norm())
        if not off <= SAME * truth.norm() + rounding:
            raise WrongAnswerError(
                f"{timed.name}, {block.name}: expected {name} to give the differences of float64 to {SAME}, "
                f"got a relative error of {lost:.2g}. Mend the evaluator before its time is taken."
            )
        timed_queries = timed.queries(block, contender.queries, together=min(TOGETHER, contender.queries))
        times.peak[name] = _peak(contender, timed, timed_queries, base)
        runs[name] = _run(contender, timed, timed_queries, base)
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    for name, spread in spreads(runs, rounds, clock).items():
        scale = 1e6 / contenders[name].queries
        times.microseconds[name] = Spread(spread.lower * scale, spread.median * scale, spread.upper * scale)
    before.restore()
    return times


def uniform_mean(blocks: Sequence[BlockTimes], name: str) -> float:
    """Microseconds of a query at a uniformly drawn coordinate: the mean over blocks, by their weights."""
    weights = sum(block.weights for block in blocks)
    return sum(block.weights * block.microseconds[name].median for block in blocks) / weights


def _differences(contender: Contender, timed: Timed, queries: Coordinates, base: Tensor) -> Tensor:
    parts, changes = [], contender.evaluator.begin(timed.problem, base)
    for start in range(0, len(queries), contender.queries):
        part = queries.part(start, start + contender.queries)
        parts.append(changes(part).double().mean(dim=1))
    return torch.cat(parts)


def _true_differences(timed: Timed, block: Block, checked: int) -> Tensor:
    wide, queries = timed.in_float64(), timed.queries(block, checked)
    start = Snapshot(wide.network)
    base = wide.objective(wide.network, wide.batch)
    start.restore()
    return (
        zo.evaluators.Loop()
        .changes(wide, Coordinates(queries.indices, queries.steps.double()), base)
        .mean(dim=1)
    )


def _run(contender: Contender, timed: Timed, queries: Coordinates, base: Tensor) -> Callable[[], object]:
    changes = contender.evaluator.begin(timed.problem, base)  # once a step, as in training

    def run() -> None:
        changes(queries)
        if base.is_cuda:
            torch.cuda.synchronize(base.device)

    return run


def _peak(contender: Contender, timed: Timed, queries: Coordinates, base: Tensor) -> int:
    device = base.device
    if base.is_cuda:
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        contender.evaluator.begin(timed.problem, base)(queries)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with measured(True) as peak:
        contender.evaluator.begin(timed.problem, base)(queries)
    return peak.peak
