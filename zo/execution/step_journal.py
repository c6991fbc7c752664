"""The journal of a step that takes long: finished pieces by name, with their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor

from zo.batches import bits, tensors
from zo.evaluators.evaluator import Step
from zo.objective import Closed


class Store(Protocol):
    """A place in which a journal keeps the numbers of finished pieces, for as long as a step takes.

    A later process that takes the same step asks before it evaluates. Keys distinguish steps, weights and
    batches, so entries of another step are never used, and may be deleted at any time.
    """

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return the value under a key, or None; asked right before the piece would be evaluated."""
        ...

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep tensors and plain values under a key; what is raised here ends the step."""
        ...


class StepJournal:
    """The journal of one step.

    Args:
        store: The store of the entries.
        step: The step; its tally counts the queries of checks, with those of recalled pieces.
        fingerprint: The checksum of all that the step's queries depend on.
    """

    def __init__(self, store: Store, step: Step, fingerprint: str) -> None:
        self._store, self._tally, self._fingerprint = store, step.tally, fingerprint

    def remember(self, name: str, work: Callable[[], Tensor]) -> Tensor:
        """The numbers of a piece: from the journal, or by `work`, and then kept there."""
        recalled = self.known([name])
        if recalled:
            return recalled[name]
        queries = self._tally.queries
        numbers = work()
        self.keep(name, numbers, self._tally.queries - queries)
        return numbers

    def keep(self, name: str, numbers: Tensor, spent: int) -> None:
        """Keep the numbers of a piece, and how many queries checks have cost meanwhile."""
        self._store.put(self._key(name), {"numbers": numbers, "spent": spent})

    def known(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the numbers of pieces that an earlier process has left, by name."""
        recalled = {}
        for name in names:
            entry = self._store.get(self._key(name)) or {}
            numbers, queries = entry.get("numbers"), entry.get("spent")
            if isinstance(numbers, Tensor) and isinstance(queries, int):  # a journal's files may be anyone's
                self._tally.queries += queries
                recalled[name] = numbers
        return recalled

    def _key(self, name: str) -> str:
        return f"{self._fingerprint} {name}"


def step_fingerprint(step: Step, base: Tensor, settings: str) -> str:
    """A checksum of all that the queries of a step depend on.

    Args:
        step: Its weights, buffers and batch count, and the random state.
        base: Losses of the base, `(rows,)`: only which of them are finite, since a box may be noisy. Of a
            closure, whose batch nobody sees, their values too: another batch has other ones. With a noisy
            box the entries of such a step are not used again.
        settings: Seed, step, estimator and chunk, in words.
    """
    network = step.network
    digest = sha256(f"{settings} {'training' if network.training else 'evaluation'}".encode())
    weights = [*network.parameters(), *network.buffers()]
    of_base = base if isinstance(step.objective, Closed) else torch.isfinite(base)
    generators = [torch.get_rng_state()]
    generators += [torch.cuda.get_rng_state(device) for device in {w.device for w in weights if w.is_cuda}]
    for tensor in (*weights, *step.parameters.tensors, *tensors(step.batch), *generators, of_base):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bits(tensor.cpu()).numpy().data)
    return digest.hexdigest()
