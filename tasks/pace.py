"""How a stage gets on: queries and rows a second, time left, use of workers; and what its boxes count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from blackbox import BlackBoxFunction, Ledger
from blackbox.wrappers import Parallel
from blackbox.wrappers.wrapper import Wrapper
from zo import SharedRows

EVERY = 60.0  # seconds between lines of it in the metrics


class Tally:
    """What several black boxes count together, as one ledger; boxes that share a ledger count once.

    Of boxes that several processes ask alike (`zo.SharedRows`) it is what this process evaluates itself.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction]) -> None:
        ledgers = [evaluated(box).ledger for box in boxes]
        self._ledgers = list({id(ledger): ledger for ledger in ledgers}.values())

    def copy(self) -> Ledger:
        """The counts as they stand now."""
        found = Ledger()
        for ledger in self._ledgers:
            found.add(ledger)
        return found

    def since(self, before: Ledger) -> Ledger:
        """What was counted after `before`."""
        return self.copy().since(before)

    def add(self, counts: Ledger) -> None:
        """Add what an earlier process counted, to the first box's ledger."""
        for ledger in self._ledgers[:1]:
            ledger.add(counts)


class Pace:
    """Figures over a span of training, from what steps return and how busy workers were.

    They depend on the clock, so they have lines of their own in `metrics.jsonl`, of which a short stage has
    none.

    Args:
        steps: of the stage.
        done: of these, before.
        boxes: the black boxes that steps call.
        every: seconds in a span; `EVERY` if None.
        clock: gives seconds.

    Attributes:
        last: the figures of the last span; empty before.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        boxes: Sequence[BlackBoxFunction] = (),
        every: float | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._steps, self._clock = steps, clock
        self._every = EVERY if every is None else every
        self._parallel = next((found for box in boxes if (found := parallel_in(box)) is not None), None)
        self.last: dict[str, float] = {}
        # a resumed stage's first metrics hold what earlier processes spent
        self._spent: Mapping[str, float] | None = None if done else {}
        self._begin(done)

    def figures(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """What a span came to, at its end; empty before.

        Args:
            step: steps done.
            metrics: of the last; `queries` and `rows`, cumulative, are looked at.

        Returns:
            `queries_per_second`, `rows_per_second`, `seconds_left`; where a `Parallel` is in the box
            `workers` that ran anything, and `worker_use`, `worker_use_least`: the part of the span that they
            were busy, on average and the idlest.
        """
        if self._spent is None:
            self._spent = metrics
            self._begin(step)
            return {}
        passed = self._clock() - self._at
        if passed < self._every or step == self._step:
            return {}
        found = {
            f"{name}_per_second": (metrics[name] - self._spent.get(name, 0.0)) / passed
            for name in ("queries", "rows")
            if name in metrics
        }
        found["seconds_left"] = passed / (step - self._step) * (self._steps - step)
        found |= self._use(passed)
        self.last = found
        self._spent = metrics
        self._begin(step)
        return found

    def _begin(self, step: int) -> None:
        self._step, self._at = step, self._clock()
        self._busy = {} if self._parallel is None else self._parallel.worker_seconds

    def _use(self, passed: float) -> dict[str, float]:
        now = {} if self._parallel is None else self._parallel.worker_seconds
        use = [(seconds - self._busy.get(worker, 0.0)) / passed for worker, seconds in now.items()]
        use = [part for part in use if part > 0]  # others have died
        if not use:
            return {}
        return {"workers": len(use), "worker_use": sum(use) / len(use), "worker_use_least": min(use)}


def evaluated(box: BlackBoxFunction) -> BlackBoxFunction:
    """The box whose ledger has what this process evaluates; the sum over processes is what one would."""
    return box.box if isinstance(box, SharedRows) else box


def recall(boxes: Sequence[BlackBoxFunction], *counts: Ledger) -> None:
    """Count what earlier processes of a run have run, for its budget of rows.

    A wrapper whose class says `remembers = True` keeps that by itself.
    """
    if boxes and not any(getattr(part, "remembers", False) for box in boxes for part in stack(box)):
        for spent in counts:
            evaluated(boxes[0]).ledger.add(spent)


def stack(box: BlackBoxFunction) -> list[BlackBoxFunction]:
    """The wrappers of a box from the outside in, and the box itself."""
    found = [box]
    while isinstance(found[-1], Wrapper):
        found.append(found[-1].box)
    return found


def parallel_in(box: BlackBoxFunction) -> Parallel | None:
    """The outermost `Parallel` of a stack of wrappers, if there is one."""
    return next((part for part in stack(box) if isinstance(part, Parallel)), None)
