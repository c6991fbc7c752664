"""How a stage gets on: queries and rows a second, time left, failed rows by kind, use of each worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from blackbox import BlackBoxFunction, Ledger
from blackbox.wrappers import Parallel
from blackbox.wrappers.wrapper import Wrapper
from zo import SharedRows

EVERY = 60.0  # seconds between lines of it in the metrics
MOST = 16  # processes whose use is given one by one
KINDS = ("raised", "not_finite", "timed_out", "lost", "skipped")  # of failed rows, as the ledger has them


class Tally:
    """What several black boxes count together, as one ledger; boxes that share a ledger count once.

    Of boxes that several processes ask alike (`zo.SharedRows`) it is what this process evaluates itself.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction]) -> None:
        self._ledgers = list({id(evaluated(box).ledger): evaluated(box).ledger for box in boxes}.values())
        self._earlier = Ledger()

    def copy(self) -> Ledger:
        """The counts as they stand now."""
        found = self._earlier.copy()
        for ledger in self._ledgers:
            found.add(ledger)
        return found

    def since(self, before: Ledger) -> Ledger:
        """What was counted after `before`."""
        return self.copy().since(before)

    def add(self, counts: Ledger) -> None:
        """Add what an earlier process counted."""
        self._earlier.add(counts)

    def failures(self) -> dict[str, int]:
        """Failed and skipped rows by kind, those that there were."""
        return self.copy().failures()


class Pace:
    """Figures over a span of training, from what steps return and what a black box counts.

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
        self._tally = Tally(boxes)
        self._parallel = next((found for box in boxes if (found := parallel_in(box))), None)
        self._failures = self._tally.failures()
        # what was spent before this process is not known until its first step has told
        self._spent: Mapping[str, float] | None = {} if done == 0 else None
        self.last: dict[str, float] = {}
        self._others: dict[str, int] = {}  # rows that failed in other processes
        self._heard = self._heard_first = (self._clock(), [0.0])  # seconds that each process has waited
        self._begin(done)

    def own(self, waited: float) -> list[float]:
        """What other processes are told: seconds that this one has waited for them, and its failed rows."""
        own = self._own_failures()
        return [waited, *(own.get(kind, 0) for kind in KINDS)]

    def heard(self, each: Sequence[Sequence[float]]) -> None:
        """What each process told, this one included, in the order of their ranks."""
        own = self._own_failures()
        sums = {kind: sum(int(told[1 + place]) for told in each) for place, kind in enumerate(KINDS)}
        self._others = {kind: count - own.get(kind, 0) for kind, count in sums.items()}
        first = len(self._heard[1]) != len(each)
        self._heard = self._clock(), [told[0] for told in each]
        if first:
            self._heard_first = self._heard

    def failures(self) -> dict[str, int]:
        """Rows that failed since it was made, by kind, as `Ledger.failures` has them; in all processes.

        Of other processes it is what they told last.
        """
        own = self._own_failures()
        found = {kind: own.get(kind, 0) + self._others.get(kind, 0) for kind in KINDS}
        return {kind: count for kind, count in found.items() if count}

    def _own_failures(self) -> dict[str, int]:
        now = self._tally.failures()
        return {kind: count - self._failures.get(kind, 0) for kind, count in now.items()}

    def figures(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """What a span came to, at its end; empty before.

        Args:
            step: steps done.
            metrics: of the last; `queries` and `rows`, cumulative, are looked at.

        Returns:
            `queries_per_second`, `rows_per_second`, `seconds_left`; `failed_raised` and so on since the
            start; where a `Parallel` is in the box `workers` that ran anything, and `worker_use`,
            `worker_use_least`: the part of the span that they were busy, on average and the idlest. Of a
            run in several processes likewise `processes`, `process_use`, `process_use_least`, and of up to
            16 also `process_0_use` and so on: the part in which they did not wait for each other.
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
        found |= {f"failed_{kind}": count for kind, count in self.failures().items()}
        found |= self._use(passed) | self._use_of_processes()
        self.last = found
        self._spent = metrics
        self._begin(step)
        return found

    def _begin(self, step: int) -> None:
        self._step, self._at = step, self._clock()
        self._busy = {} if self._parallel is None else self._parallel.worker_seconds
        self._heard_first = self._heard

    def _use(self, passed: float) -> dict[str, float]:
        now = {} if self._parallel is None else self._parallel.worker_seconds
        use = [(seconds - self._busy.get(worker, 0.0)) / passed for worker, seconds in now.items()]
        use = [part for part in use if part > 0]  # others have died
        if not use:
            return {}
        return {"workers": len(use), "worker_use": sum(use) / len(use), "worker_use_least": min(use)}

    def _use_of_processes(self) -> dict[str, float]:
        (start, before), (end, now) = self._heard_first, self._heard
        if len(now) < 2 or end <= start:
            return {}
        # a wait is noted at its end, and may have begun before the span
        use = [
            min(1.0, max(0.0, 1 - (late - early) / (end - start)))
            for early, late in zip(before, now, strict=True)
        ]
        found = {"processes": len(use), "process_use": sum(use) / len(use), "process_use_least": min(use)}
        each = {f"process_{rank}_use": part for rank, part in enumerate(use)}
        return found | each if len(use) <= MOST else found


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
