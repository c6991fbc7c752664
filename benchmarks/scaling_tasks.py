"""Query phase of the three tasks' demo presets on two processes of one thread, and their ceiling.

Two processes take three kinds of steps in turn, interleaved: one alone while the other waits, both the same
step at the same time without a word (the machine's ceiling: two cores share memory, caches and clock), and
one step shared out. The query phase is all between the plan and the differences, with exchange and waiting;
the base, which every process evaluates, is in the step's time only.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import zo
import zo.loss_gradient
from simulators.wake_flow.box import WakeFlow
from tasks.denoised_smoothing import DenoisedSmoothing
from tasks.denoised_smoothing.classifiers.stack import ROWS
from tasks.image_classification import ImageClassification
from tasks.image_classification.methods import estimator as image_estimator
from tasks.image_classification.sparse_set import uniform_ratios
from tasks.pace import evaluated
from tasks.wake_flow import config as wake_config
from tasks.wake_flow.methods import estimator
from tasks.wake_flow.networks import Corrector, Scales, plain
from tasks.wake_flow.rollout import window_loss

WARM_UP, KINDS = 3, ("one", "both", "shared")
SAID = (
    "speed of the query phase",
    "ceiling",
    "speed of a step",
    "speed of the query phase by CPU time",
    "ceiling by CPU time",
)
Made = tuple[zo.LossGradient, Any]  # a gradient and its batch


def wake(group: dist.ProcessGroup | None) -> Made:
    """ZO-SOL; frames are made by the solver itself, since speed does not depend on their values."""
    config = replace(wake_config.PRESETS["demo"], coordinates=96)
    box = zo.SharedRows(WakeFlow(config.width, dt=config.dt, failures="keep"), group)
    generator = torch.Generator().manual_seed(0)
    start = 0.05 * torch.randn(config.batch, *box.inputs[0].shape, generator=generator)
    start[:, 1] += 1
    reynolds = torch.tensor(config.train_reynolds)[: config.batch]
    frames = [start]
    for _ in range(config.unroll):
        frames.append(box(frames[-1], reynolds))
    torch.manual_seed(0)
    network = Corrector(plain(config.channels), Scales(velocity=0.3, reynolds=370.0, correction=0.04))
    rule = estimator(config, zo.RandomCoordinates(config.coordinates))
    objective = window_loss(box, 0.3)
    made = zo.LossGradient(network, objective, rule, chunk=config.chunk, process_group=group)
    return made, (torch.stack(frames, dim=1), reynolds)


def smoothing(group: dist.ProcessGroup | None) -> Made:
    """deepzero, with coordinates drawn over all weights in the same way."""
    problem = DenoisedSmoothing(loss="labels")
    problem.replace_boxes(lambda box: zo.SharedRows(evaluated(box), group, ROWS))
    config = problem.config
    rule = zo.CGE(1e-3, zo.RandomCoordinates(config.coordinates))
    torch.manual_seed(0)
    made = zo.LossGradient(
        problem.network(), problem.objective, rule, evaluator=config.evaluator, process_group=group
    )
    return made, problem.batch(0, 0, config.deepzero_batch)


def images(group: dist.ProcessGroup | None) -> Made:
    """deepzero, with the same part of every layer."""
    problem = ImageClassification()
    config, network = problem.config, problem.network()
    ratios = uniform_ratios(network, config.sparsity, config.dense)
    rule = image_estimator("deepzero", config, network, zo.LayerwiseCoordinates(ratios))
    made = zo.LossGradient(network, problem.objective, rule, evaluator=config.evaluator, process_group=group)
    return made, problem.epochs(0).batch(0)


TASKS: dict[str, Callable[[dist.ProcessGroup | None], Made]] = {
    "wake flow, ZO-SOL": wake,
    "denoised smoothing, deepzero": smoothing,
    "image classification, deepzero": images,
}


class Clock:
    """Seconds of the last query phase, until all numbers are there: on the wall, and of this process."""

    def __init__(self) -> None:
        self.wall = self.own = 0.0
        self._began = 0.0, 0.0

    def beginning(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """The function with which the phase begins."""

        def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            self._began = perf_counter(), process_time()
            return evaluate(*given, **named)

        return timed

    def ending(self, following: Callable[..., Any]) -> Callable[..., Any]:
        """The function that follows the phase."""

        def timed(*given: Any) -> Any:  # noqa: ANN401
            self.wall, self.own = perf_counter() - self._began[0], process_time() - self._began[1]
            return following(*given)

        return timed


def work(rank: int, name: str, rounds: int, folder: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    clock = Clock()
    module: Any = zo.loss_gradient
    module.evaluate_share = clock.beginning(module.evaluate_share)
    module.joined = clock.ending(module.joined)
    with redirect_stdout(StringIO()):
        alone, shared = TASKS[name](None), TASKS[name](dist.group.WORLD)
    alone[0].backward(alone[1])
    left = [alone[0].state_dict()]  # what is measured and chosen at the first step is the same for all
    dist.broadcast_object_list(left, src=0)
    for gradient, _ in (alone, shared):
        gradient.load_state_dict(left[0])
    for _ in range(WARM_UP - 1):
        for gradient, batch in (alone, shared):
            torch.manual_seed(0)
            gradient.backward(batch)
    seconds: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            dist.barrier()
            if kind != "one" or rank == 0:
                gradient, batch = shared if kind == "shared" else alone
                torch.manual_seed(0)
                began = perf_counter()
                gradient.backward(batch)
                seconds[kind].append((clock.wall, perf_counter() - began, clock.own))
    found: list[Any] = [None, None]
    dist.all_gather_object(found, seconds)
    if rank == 0:
        gradient = shared[0]
        chunks = -(-gradient.queries() // (gradient.chunk or 1))
        facts = {"queries": gradient.queries(), "chunks": chunks, "exchanged": gradient.exchanged}
        torch.save((found, facts), f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured(name: str, rounds: int) -> dict[str, Any]:
    """What a task's query phase gains by a second process, and what two cores give at most."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (name, rounds, folder), nprocs=2)
        found, facts = torch.load(f"{folder}/found.pt", weights_only=False)

    def median(kind: str, column: int) -> float:
        slower = zip(*(own[kind] for own in found if own[kind]), strict=True)
        return statistics.median(max(rank[column] for rank in step) for step in slower)

    phase, step, own = (partial(median, column=column) for column in range(3))
    speed, ceiling = phase("one") / phase("shared"), 2 * phase("one") / phase("both")
    return {
        **facts,
        "seconds of the query phase": {kind: phase(kind) for kind in KINDS},
        "seconds of a step": {kind: step(kind) for kind in KINDS},
        "CPU seconds of the query phase": {kind: own(kind) for kind in KINDS},
        "speed of the query phase": speed,
        "ceiling": ceiling,
        "speed over the ceiling": speed / ceiling,
        "speed of a step": step("one") / step("shared"),
        # of the slower process: what others on the machine take away does not count, waiting neither
        "speed of the query phase by CPU time": own("one") / own("shared"),
        "ceiling by CPU time": 2 * own("one") / own("both"),
    }


def every(rounds: int) -> dict[str, Any]:
    """All three, printed as they come."""
    table = {}
    for name in TASKS:
        table[name] = found = measured(name, rounds)
        print(
            f"{name}: {found['queries']} queries in {found['chunks']} chunks, load {os.getloadavg()[0]:.1f}"
        )
        for said in SAID:
            print(f"    {said}: {found[said]:.2f}")
    return table
