"""A journal of a step's finished queries: what it is asked, and when what it says counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor

from zo.batches import tensors
from zo.evaluators.evaluator import Evaluator, Problem

Found = tuple[Tensor, Tensor]  # differences (queries,) and which are valid (queries,)


class Journal(Protocol):
    """Keeps what chunks of queries came to, for as long as a step takes.

    A later process that takes the same step asks before it evaluates. Keys tell steps, weights and batches
    apart, so entries of another step are never found and may go at any time.
    """

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What was put under a key, None if nothing was; asked right before the chunk would be evaluated."""
        ...

    def put(self, key: str, value: Mapping[str, Any], others: Sequence[Any] = ()) -> None:
        """Keep tensors and plain values under a key; what is raised here ends the step.

        `others` is what `spent` gave in other processes, whose queries are kept here.
        """
        ...

    def spent(self) -> Any:  # noqa: ANN401
        """What was counted since `get` or this was last called: plain values for the process that keeps."""
        ...


class Page:
    """The journal of one step.

    Args:
        journal: to look in.
        evaluator: of the queries; its state is kept with each chunk, since its first-use check is.
        fingerprint: of the step.

    Attributes:
        queries: what checks have cost, in this process or the one that was interrupted.
    """

    def __init__(self, journal: Journal, evaluator: Evaluator, fingerprint: str) -> None:
        self._journal, self._evaluator, self._fingerprint = journal, evaluator, fingerprint
        self.queries = 0

    def chunk(self, start: int, stop: int, work: Callable[[], Found]) -> Found:
        """What queries `start` to `stop - 1` came to: from the journal, or by `work`."""
        known = self.known(start, stop)
        if known is not None:
            return known
        difference, valid = work()
        self.keep(start, stop, (difference, valid), self._evaluator.take_queries())
        return difference, valid

    def known(self, start: int, stop: int) -> Found | None:
        """What an earlier process found of queries `start` to `stop - 1`; its evaluator's state is taken."""
        known = self._journal.get(self._key(start, stop))
        if known is None:
            return None
        self._evaluator.load_state_dict(known["evaluator"])
        self.queries += known["queries"]
        return known["difference"], known["valid"]

    def keep(
        self,
        start: int,
        stop: int,
        found: Found,
        checks: int,
        others: Sequence[Any] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Put queries `start` to `stop - 1` in the journal.

        Args:
            start: number of the first.
            stop: number after the last.
            found: what they came to.
            checks: queries that checks cost beside them.
            others: what was counted for them in other processes.
            state: of the evaluator after them; the one of now if None.
        """
        difference, valid = found
        self.queries += checks
        state = self._evaluator.state_dict() if state is None else state
        value = {"difference": difference, "valid": valid, "queries": checks, "evaluator": state}
        if others:
            self._journal.put(self._key(start, stop), value, others)
        else:
            self._journal.put(self._key(start, stop), value)

    def _key(self, start: int, stop: int) -> str:
        return f"{self._fingerprint} {start}-{stop}"


def fingerprint(problem: Problem, base: Tensor, settings: str) -> str:
    """A checksum of all that the queries of a step hang on.

    Args:
        problem: its weights, buffers and batch, and the random state.
        base: losses of the base, `(rows,)`: only which of them are finite, since a box may be noisy.
        settings: seed, step, estimator and chunk, in words.
    """
    network = problem.network
    found = sha256(f"{settings} {'training' if network.training else 'evaluation'}".encode())
    weights = [*network.parameters(), *network.buffers()]
    generators = [torch.get_rng_state()]
    generators += [torch.cuda.get_rng_state(device) for device in {w.device for w in weights if w.is_cuda}]
    for tensor in (
        *weights,
        *problem.parameters.tensors,
        *tensors(problem.batch),
        *generators,
        torch.isfinite(base),
    ):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(values.numpy().data)
    return found.hexdigest()
