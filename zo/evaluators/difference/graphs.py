"""Passes of one kind as CUDA graphs, a pass's kernels put into the stream by one call.

A pass is some hundred kernels. Each takes the host some microseconds to launch, more than the GPU needs to
run it. The kernels of two passes of equally many variants of a parameter differ in two arguments, entries and
steps. So the first such pass of a step runs as it is, and fills the rules' caches of the base. The second is
captured. From then on new entries and steps are written where the graph reads them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Entries
from zo.evaluators.difference.propagation import send
from zo.evaluators.difference.tape import Tape

EAGER = 1  # passes of a kind before one is captured


class Graphs:
    """The graphs of a step, by parameter and number of variants.

    They share their memory, so each result is copied before the next graph runs.

    Args:
        tape: The tape of the step's base; its tensors stay where they are.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._passes: dict[tuple[int, int], int] = {}
        self._captured: dict[tuple[int, int], tuple[Entries, Callable[[], Tensor]]] = {}
        self._pool: object = None

    def send(self, number: int, change: Entries) -> Tensor:
        """Return the changes of the losses, `(variants, rows)`; see `passes.send`."""
        kind = number, len(change.entries)
        self._passes[kind] = self._passes.get(kind, 0) + 1
        if self._passes[kind] <= EAGER:
            return send(self._tape, number, change, None)
        if kind not in self._captured:
            entries = Entries(change.indices.clone(), change.steps.clone(), change.shape)
            if self._pool is None:
                self._pool = new_pool()
            run = captured(lambda: send(self._tape, number, entries, None), self._pool, entries.steps.device)
            self._captured[kind] = entries, run
        entries, run = self._captured[kind]
        entries.indices.copy_(change.indices)
        entries.steps.copy_(change.steps)
        return run().clone()


def new_pool() -> object:
    """Memory for graphs that never run at the same time."""
    return torch.cuda.graph_pool_handle()


def captured(run: Callable[[], Tensor], pool: object, device: torch.device) -> Callable[[], Tensor]:
    """A function that launches what `run` launches, and gives the tensor that it gave, filled anew.

    Only streams of the current device are captured: on another one `run` would run once, and never again.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool):  # pyright: ignore[reportArgumentType]
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
