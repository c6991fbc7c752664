"""Who evaluates which chunks of queries: shares of equal cost, from seconds that rank 0 has measured."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch

from zo.parameters import Parameters
from zo.perturbation import Perturbations

STEPS = 2  # that are measured: the first also fills caches
SMALLEST = 16  # queries of a chunk that is made smaller to share out
MANY = 8  # chunks of a step whose layers cost unequally: of four the first may take half of the time
ROUNDS = 50  # of the fit; it changes in the third digit after some ten

Composition = dict[int, float]  # how many queries of a chunk are of which layer


def compositions(plan: Perturbations, parameters: Parameters, chunk: int) -> list[Composition]:
    """Of each chunk of a step; a tensor of the parameters is a layer, and -1 stands for whole directions."""
    bounds = range(0, plan.queries, chunk)
    indices = plan.moved()
    if indices is None:
        return [{-1: min(chunk, plan.queries - start)} for start in bounds]
    layers = torch.full((plan.queries,), -1)
    single = indices >= 0
    layers[single] = parameters.locate(indices[single])[0]
    found: list[Composition] = []
    for start in bounds:
        which, counts = layers[start : start + chunk].unique(return_counts=True)
        found.append(dict(zip(which.tolist(), counts.tolist(), strict=True)))
    return found


class Costs:
    """Seconds of a query by layer, fitted to the seconds of the chunks that rank 0 evaluated.

    They decide who evaluates a chunk and nothing else, so what they are worth changes no bit.

    Attributes:
        seconds: of a query of each layer that was seen.
        steps: how many were measured; after `STEPS` no more are.
    """

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.steps = 0

    @property
    def known(self) -> bool:
        """Whether another measurement would add nothing."""
        return self.steps >= STEPS

    def learn(self, measured: Sequence[tuple[Composition, float]]) -> None:
        """Take the chunks of a step and their seconds in the place of what was known before.

        A chunk of several layers says their sum. Beginning with equal costs, each layer's is multiplied by
        what its chunks took over what they were thought to take (the Richardson-Lucy iteration, which
        keeps costs positive).
        """
        if not measured:
            return
        queries = sum(sum(composition.values()) for composition, _ in measured)
        mean = max(sum(seconds for _, seconds in measured) / queries, 1e-9)
        found = {layer: mean for composition, _ in measured for layer in composition}
        for _ in range(ROUNDS):
            ratio, weight = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0)
            for composition, seconds in measured:
                off = seconds / sum(count * found[layer] for layer, count in composition.items())
                for layer, count in composition.items():
                    ratio[layer] += count * off
                    weight[layer] += count
            found = {layer: max(cost * ratio[layer] / weight[layer], 1e-12) for layer, cost in found.items()}
        self.seconds = {**self.seconds, **found}
        self.steps += 1

    def of(self, composition: Composition) -> float:
        """Seconds of a chunk; a layer that was not seen costs what the nearest one in front of it does."""
        return sum(count * self._of_layer(layer) for layer, count in composition.items())

    def state_dict(self) -> dict[str, Any]:
        """Layers, their seconds, and how often they were measured."""
        return {"layers": list(self.seconds), "seconds": list(self.seconds.values()), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the costs of `state_dict`."""
        self.seconds = dict(zip(state["layers"], state["seconds"], strict=True))
        self.steps = state["steps"]

    def _of_layer(self, layer: int) -> float:
        if not self.seconds:
            return 1.0
        nearest = min(self.seconds, key=lambda other: (abs(other - layer), other))
        return self.seconds[nearest]


def dealt(chunks: Sequence[int], composed: Sequence[Composition], costs: Costs, size: int) -> list[list[int]]:
    """The chunks of each rank, ascending; the same wherever it is computed.

    With costs the longest chunk goes first, always to the rank with least to do (Graham 1969: at most 4/3
    of the best). Without, numbers are equal, and rank 0, which measures, gets a chunk of each layer.

    Args:
        chunks: numbers of those to deal.
        composed: of all chunks of the step.
        costs: of the layers.
        size: how many ranks.
    """
    if not costs.seconds:
        return _evenly(chunks, composed, size)
    each = {number: costs.of(composed[number]) for number in chunks}
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [(0.0, rank) for rank in range(size)]
    for number in sorted(chunks, key=lambda number: (-each[number], number)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(number)
        heapq.heappush(loads, (load + each[number], rank))
    return [sorted(share) for share in shares]


def _evenly(chunks: Sequence[int], composed: Sequence[Composition], size: int) -> list[list[int]]:
    most = -(-len(chunks) // size)
    best: dict[int, int] = {}  # of each layer the chunk that has most of it
    for number in chunks:
        for layer, count in composed[number].items():
            if layer not in best or count > composed[best[layer]].get(layer, 0):
                best[layer] = number
    first = sorted(set(best.values()))[:most]
    others = [number for number in chunks if number not in set(first)]
    shares = [list(first), *([] for _ in range(size - 1))]
    for number in others:
        min(reversed(shares), key=len).append(number)
    return [sorted(share) for share in shares]


def even_chunk(queries: int, most: int, *, unequal: bool = False) -> int:
    """How many of a step's queries run together: chunks of equal size, and an even number of them.

    One chunk would leave a second process nothing to do, and of three one would be waited for. The number of
    processes has no part in it, since other chunks round otherwise. Chunks below `SMALLEST` queries cost more
    in overhead than a second process saves.

    Args:
        queries: of the step.
        most: that fit together.
        unequal: whether the queries of some layers may cost many times those of others, as where only what
            lies behind a layer is evaluated: then shares come out equal only of more chunks.
    """
    if unequal:
        most = min(most, max(SMALLEST, -(-queries // MANY)))
    chunks = -(-queries // most)
    chunks += chunks % 2
    even = -(-queries // chunks)
    return even if even >= SMALLEST else most
