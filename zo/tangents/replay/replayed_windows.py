"""`Windows`: the windows of the last steps, the rows drawn from them, and the number of trusted replays."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, variance
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.notices import Notice, Notices
from zo.batches import map_tensors
from zo.draws import REPLAYED, UNASKED, Key
from zo.errors import TangentError, TangentWarning
from zo.tangents.record.window import Window, joined_rows, plain, window_of

# decision 54:
YOUNG, FEWEST = 3, 20  # the last third of all windows so far are young, and at least the last twenty
FEWEST_ROWS = 4  # of a replay: they cost no box; decision 54
# decision 54:
USUAL, MOST = 9, 19  # replays that may follow a window; and where losses of replays are those of new windows
MOST_BYTES = 2**30  # of windows; the oldest go, but for the last; decision 53
_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
TINY = 1e-300  # a loss that is not above zero counts as this, so that it is close to nothing but such
# decision 54:
COMPARED = 5  # windows whose losses are compared with those of replays, or of as many windows before
GROWS = 1.5  # replays grow so, while nothing speaks against them; decision 53
CLOSE, SURE = math.log(2), 2.0  # to a factor of two, or to so many standard errors; decision 54


@dataclass
class _Rate:
    """The number of replays behind a window, decided by losses that boxes gave and by replayed ones.

    Losses are compared by the mean of the logarithms of rows, in which one hard row does not outweigh all.
    Replays that train make their rows easier than they were when they were recorded.
    """

    replays: float = float(USUAL)
    real: list[float] = field(default_factory=list)  # of the last windows
    gaps: list[float] = field(default_factory=list)  # by which they were above those of replays before
    total: float = 0.0  # of replays since the last window
    changed: float = 0.0  # by which rows of those were harder than when they were recorded
    since: int = 0  # how many
    recorded: int = 0
    rest: int = 0  # windows to go until one replay is tried again

    def saw(self, losses: Tensor) -> None:
        """Take in the losses `(rows,)` that the boxes gave a new window."""
        self.recorded += 1
        loss = _level(losses)
        self.real = [*self.real, loss][-2 * COMPARED :]
        if self.rest:
            self.rest -= 1
        elif self.since:
            self.gaps = [*self.gaps, loss - self.total / self.since][-COMPARED:]
            if self.changed > 0:
                self.replays /= 2
            elif self._rises():
                self.replays, self.real = self.replays / 2, self.real[COMPARED:]
            elif len(self.real) == 2 * COMPARED:
                most = MOST if abs(fmean(self.gaps)) <= CLOSE else USUAL
                self.replays = min(most, GROWS * self.replays)
            if self.replays < 1:
                self.replays, self.rest = 1.0, COMPARED
        self.total, self.changed, self.since = 0.0, 0.0, 0

    def _rises(self) -> bool:
        """Say whether the losses of new windows are clearly higher than those of the windows before."""
        if len(self.real) < 2 * COMPARED:
            return False
        past, now = self.real[:COMPARED], self.real[COMPARED:]
        error = math.sqrt((variance(past) + variance(now)) / COMPARED)
        return fmean(now) - fmean(past) > max(CLOSE, SURE * error)

    def replayed(self, losses: Tensor, recorded: Tensor) -> None:
        """Take in the losses `(rows,)` of a replay, and what those rows were recorded with."""
        loss = _level(losses)
        if math.isfinite(loss):
            self.total += loss
            self.changed += loss - _level(recorded)
        else:
            self.changed = math.inf
        self.since += 1


def _level(losses: Tensor) -> float:
    return float(losses.double().clamp(min=TINY).log().mean())


class Windows:
    """Keeps windows while they are young.

    `replays` is the number of replays that follow a window; if it is None the number follows from the losses.
    It is nine at first. It grows to nineteen while new windows have the losses of the replays just before
    them, to a factor of two: then the gains of replays hold on fresh rows. It halves where the rows of the
    last replays were harder, in the mean, than when the boxes answered them: then the steps undo their own
    work. It also halves where the losses of five new windows are clearly above those of the five before, by a
    factor of two and two standard errors. Below one, replays rest for five windows. Losses must be above
    zero, and an offset in them hides such changes.

    Args:
        replays: a fixed number; None for as many as are trusted.
        max_age: windows kept, the oldest going; None for the last third of all so far, and at least twenty.
            Together they take at most 1 GiB.
        notices: the notices given so far.

    Attributes:
        most_bytes: the most bytes that they may take, but for the last.
    """

    def __init__(self, replays: int | None, max_age: int | None, notices: Notices | None = None) -> None:
        self.replays, self.max_age = replays, max_age
        self.most_bytes = MOST_BYTES
        self._windows: list[Window] = []
        self._rate = _Rate()
        self._notices = Notices() if notices is None else notices

    def add(self, window: Window) -> None:
        """Take in the window of a new step."""
        self._rate.saw(window.losses[window.survived])
        age = max(FEWEST, self._rate.recorded // YOUNG) if self.max_age is None else self.max_age
        data = replace(window, batch=map_tensors(Tensor.detach, window.batch))  # of whose graph none is kept
        self._windows = [*self._windows, data][-age:]
        while len(self._windows) > 1 and self.size() > self.most_bytes:
            del self._windows[0]

    def forget_last(self) -> None:
        """Leave out the window of the last step, unless it is the only one."""
        if len(self._windows) > 1:
            del self._windows[-1]

    @property
    def last(self) -> Window:
        """The window of the last step."""
        return self._windows[-1]

    @property
    def since(self) -> int:
        """The number of replays since the last window, of which the next draw is a function."""
        return self._rate.since

    def __len__(self) -> int:
        """Return the number of windows that are kept."""
        return len(self._windows)

    def trusted(self) -> int:
        """Return the number of replays that may follow the last window."""
        if not self._windows:
            return 0
        if self.replays is not None:
            return self.replays
        calls = self._calls()
        if len(calls) > 1:
            self._notices.say(
                Notice(
                    "calls",
                    "TangentGradient.replays: expected an objective that makes the same number of calls in "
                    f"each step, got {_listed(calls)}. Nothing is replayed while windows of both are kept.",
                    TangentWarning,
                )
            )
            return 0
        return 0 if self._rate.rest else int(self._rate.replays)

    def draw(self, rows: int | None, key: Key, number: int | None = None) -> Window:
        """Draw rows of windows that make the same calls, as one window.

        Args:
            rows: how many; None for as many as the last window has, and at least four.
            key: the key of the gradient; the draw is a function of it, the last window's step, and the number
                of replays that followed that step.
            number: the number of a draw without a replay; None for a replay's.

        Raises:
            TangentError: there is no window, a call's rows are not rows of its batch, or calls differ.
        """
        if not self._windows:
            raise TangentError(
                "TangentGradient.replay: expected a window that was recorded, got none so far. Call "
                "replays() after the first backward(batch), and replay() as often as it says."
            )
        newest = self._windows[-1]
        path = (REPLAYED, self.since) if number is None else (UNASKED, number)
        generator = key.at(newest.step).generator(*path)
        calls = self._calls()
        if len(calls) > 1:
            raise TangentError(
                "TangentGradient.replay: expected an objective that makes the same number of calls in each "
                f"step, got {_listed(calls)}. Train it without replays, or as often as replays() says."
            )
        same = [window for window in self._windows if window.form == newest.form]
        first = same[int(torch.randint(len(same), (1,), generator=generator))]
        same = [window for window in same if window.leaves == first.leaves]
        counts = [len(window.places) for window in same]
        count = max(FEWEST_ROWS, len(newest.losses)) if rows is None else rows
        choice = torch.randperm(sum(counts), generator=generator)[:count]
        parts, first_place = [], 0
        for window, number in zip(same, counts, strict=True):
            inside = choice[(choice >= first_place) & (choice < first_place + number)]
            if len(inside):
                parts.append((window, window.places[inside - first_place]))
            first_place += number
        return joined_rows(parts)

    def replayed(self, losses: Tensor, recorded: Tensor) -> None:
        """Take in the losses `(rows,)` of a replay, and what those rows were recorded with."""
        self._rate.replayed(losses, recorded)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block whose replays leave no trace: neither in what is trusted nor in what is drawn next."""
        rate, self._rate = self._rate, copy.deepcopy(self._rate)
        try:
            yield
        finally:
            self._rate = rate

    def _calls(self) -> list[int]:
        """Return the distinct numbers of calls in the windows, sorted."""
        return sorted({len(window.calls) for window in self._windows})

    def size(self) -> int:
        """Bytes that the windows take."""
        return sum(window.size for window in self._windows)

    def state_dict(self) -> dict[str, Any]:
        """Trust and windows, in plain values."""
        kinds = {kind.__qualname__ for window in self._windows for kind in unreadable(window.batch)}
        names = {f"unreadable {kind}" for kind in kinds}
        for name in sorted(names - self._notices.said)[:1]:  # one warning names all
            notice = Notice(
                name,
                "TangentGradient.state_dict: expected batches of tensors in tuples, lists and dicts, which "
                f"replays keep and a checkpoint holds, got {', '.join(sorted(kinds))}: torch.load would "
                "refuse the file, unless it executes what is in it. Give such batches, name the classes to "
                "torch.serialization.add_safe_globals, or train with Limits(replays=0).",
                TangentWarning,
            )
            self._notices.say(notice)
            self._notices.settle(*names)
        return {"trust": asdict(self._rate), "windows": [plain(window) for window in self._windows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._rate = _Rate(**state["trust"])
        self._windows = [window_of(window) for window in state["windows"]]


def _listed(calls: Sequence[int]) -> str:
    return " and ".join(map(str, calls))


def unreadable(nesting: Any) -> Iterator[type]:
    """Yield the types in a batch that `torch.load(weights_only=True)` refuses."""
    if isinstance(nesting, dict):
        for key, value in nesting.items():
            yield from unreadable(key)
            yield from unreadable(value)
    elif type(nesting) in (tuple, list):
        for value in nesting:
            yield from unreadable(value)
    readable = (Tensor, nn.Parameter, tuple, list, dict, OrderedDict, *_PLAIN)
    if type(nesting) not in readable and type(nesting) not in torch.serialization.get_safe_globals():
        yield type(nesting)
