"""The first rows that a run's boxes answered, kept to ask them again when it is resumed: has a box changed?

A box may open a file by name, or be a server. Neither is in the code whose checksum a run keeps, but a model
that was trained again between a kill and a resume answers otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction, Budgeted
from blackbox.calls import rows_run_by
from blackbox.failures import Outcome
from blackbox.notices import warn
from blackbox.running import rows_of
from blackbox.words import counted
from tasks.errors import CheckpointError, CheckpointWarning, RunFolderError
from tasks.folder import changed_boxes, checkpoint
from tasks.rows.stacks import behind_caches, evaluated, stack
from tasks.workers import group

FILE = "first_rows.pt"
MOST, SECONDS, BYTES = 16, 1.0, 2**20  # of a box: rows, what they may take to run, and inputs and outputs
LOOKED_AT = 10  # calls in which the same rows may be asked again, which shows the noise of a box
ROUNDING, NOISES = 1e-4, 10.0  # of the largest answer, and of the noise: what is no change of the box
SHARE = 0.005  # of a budget of rows: the most that is asked again


@dataclass
class _Kept:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    noise: float | None = None  # root of the mean square of what the same rows differ by

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    @property
    def scale(self) -> float:
        return max((float(output.abs().max()) for output in self.outputs if output.numel()), default=0.0)


class FirstRows:
    """The first rows of each box of a run, in its folder; small ones, and none of a box that cannot be set.

    Args:
        folder: The run's.
        boxes: The run's boxes by name, as the problem calls them.
    """

    def __init__(self, folder: Path, boxes: Mapping[str, BlackBoxFunction]) -> None:
        self._folder = folder.absolute()  # a box may change the working directory
        self._boxes = {name: box for name, box in boxes.items() if box.settable}
        self._names = {id(box): name for name, box in self._boxes.items()}
        self._kept = _read(self._folder / FILE, self._boxes) if group.rank() == 0 else {}
        self._before = frozenset(self._kept)
        self._seen = dict.fromkeys(self._boxes, 0)
        self._places: dict[str, list[int]] = {}
        self._now: dict[str, list[Outcome]] = {}  # what boxes of earlier processes' rows answer in this one

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which they are kept of what boxes answer, by themselves or through `KeptAnswers`."""

        def run(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
            with rows_run_by(None):
                outcome = box.run_rows(inputs)
            self.saw(box, inputs, outcome)
            return outcome

        token = _at_hand.set(self)
        try:
            with rows_run_by(run):
                yield
        finally:
            _at_hand.reset(token)

    def saw(self, box: BlackBoxFunction, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
        """Keep the first rows of a box; where they were asked again, how much its answers differ."""
        name = self._names.get(id(box))
        if name is None or self._seen[name] >= LOOKED_AT or group.rank() > 0:
            return
        if name not in self._kept:
            self._keep(name, box, inputs, outcome)
            return
        self._seen[name] += 1
        kept = self._kept[name]
        places = self._places.get(name, list(range(kept.rows)))
        if len(inputs[0]) <= places[-1] or any(place in outcome.failed for place in places):
            return
        asked = zip(kept.inputs, rows_of(inputs, places), strict=True)
        if not all(torch.equal(before, now.cpu()) for before, now in asked):
            return
        if name in self._before:  # a batch is timed again where no step was done
            self._now.setdefault(name, []).append(Outcome(rows_of(outcome.outputs, places)))
        else:
            noise = max(kept.noise or 0.0, _distance(kept.outputs, rows_of(outcome.outputs, places)))
            if noise != kept.noise:
                kept.noise = noise
                self._write()

    def _keep(self, name: str, box: BlackBoxFunction, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
        ledger = evaluated(box).ledger
        most = MOST
        if ledger.seconds and ledger.rows_run:
            most = max(1, min(MOST, int(SECONDS * ledger.rows_run / ledger.seconds)))
        arrays = (*inputs, *outcome.outputs)
        of_row = sum(array[0].numel() * array.element_size() for array in arrays)
        most = min(most, BYTES // max(1, of_row))
        places = [row for row in range(len(inputs[0])) if row not in outcome.failed][:most]
        if places:
            first, answers = (
                tuple(array[places].detach().cpu().clone() for array in some)
                for some in (inputs, outcome.outputs)
            )
            self._kept[name], self._places[name] = _Kept(first, answers), places
            self._write()

    def _write(self) -> None:
        content = {name: vars(kept) for name, kept in self._kept.items()}
        try:
            checkpoint.save(self._folder / FILE, content)
        except OSError:
            self._names = {}  # it is an aid; what must not be lost says so by itself

    def ask_again(self, budget: int | None, device: str) -> None:
        """Ask the rows that earlier processes of the run have kept, and say which box answers otherwise.

        Where answers differ by more than rounding and the box's noise, as far as that is known, the rows are
        asked once more: a box that differs as much from itself is noisy, and nothing is said. The rows count,
        and are no more than a small part of a budget.

        Args:
            budget: Rows of the run; None for no limit.
            device: Where the problem's tensors are.

        Warns:
            CheckpointWarning: A box has changed since the run began; it is in the folder for the report.
        """
        said = []
        with rows_run_by(None), torch.random.fork_rng(devices=()):
            for name in self._before:
                sentence = self._compared(name, budget, device)
                said += [sentence] if sentence else []
        if said:
            with suppress(OSError, RunFolderError):  # the warning has it
                changed_boxes.add(self._folder, said)
        for sentence in said:
            warn(
                f"{self._folder}: {sentence} Put back what it was, if that was not meant, and resume again; "
                "or begin a new run. This one goes on with the box as it is now.",
                CheckpointWarning,
            )

    def _compared(self, name: str, budget: int | None, device: str) -> str:
        """What is to be said of a box; "" for nothing."""
        kept, box = self._kept[name], behind_caches(evaluated(self._boxes[name]))
        bounds = [part.rows for part in stack(self._boxes[name]) if isinstance(part, Budgeted)]
        left = [part.rows_left for part in stack(self._boxes[name]) if isinstance(part, Budgeted)]
        room = min(
            (int(SHARE * most) for most in [*bounds, *([] if budget is None else [budget])]), default=MOST
        )
        timed = self._now.get(name, [])
        rows = kept.rows if timed else min([kept.rows, room, *(rows // 2 for rows in left)])
        if rows < 1:
            return ""  # the last rows of the run's own work would be missing
        first, said = (tuple(array[:rows] for array in some) for some in (kept.inputs, kept.outputs))
        before = _Kept(first, said)
        inputs = tuple(array.to(device) for array in before.inputs)
        try:
            now = timed[0] if timed else box.run_rows(inputs)
            answered = [row for row in range(rows) if row not in now.failed]
            wanted, got = rows_of(before.outputs, answered), rows_of(now.outputs, answered)
            differs, noise = _distance(wanted, got), kept.noise or 0.0
            if not answered or differs <= ROUNDING * before.scale + NOISES * noise:
                return ""
            again = timed[-1] if len(timed) > 1 else box.run_rows(inputs)
            answered = [row for row in answered if row not in again.failed]
        except Exception:  # a budget, or a box of other outputs: what comes next says so by itself
            return ""
        wanted, got = rows_of(before.outputs, answered), rows_of(now.outputs, answered)
        noise = max(noise, _distance(got, rows_of(again.outputs, answered)))
        if not answered or _distance(wanted, got) <= ROUNDING * before.scale + NOISES * noise:
            return ""
        largest = max(
            float((a.double() - b.cpu().double()).abs().max()) for a, b in zip(wanted, got, strict=True)
        )
        twice = "the same both times" if noise == 0 else f"with noise of {noise:.2g}"
        return (
            f"Box {name!r} has changed since the run began, {self._boxes[name]!r}: expected its answers to "
            f"{counted(len(answered), 'row')} that it answered then, got others, by up to {largest:.3g} "
            f"where the largest answer was {before.scale:.3g}; asked twice now, it answered {twice}. What is "
            "trained and judged from here on, and what was before, is of two boxes: look for a model or data "
            "file that it opens, for the server that it asks, or for a random state that it keeps."
        )


_at_hand: ContextVar[FirstRows | None] = ContextVar("tasks.rows.first_rows", default=None)


def at_hand() -> FirstRows | None:
    """Whose block `watching` this is; whatever answers rows in their boxes' place shows it what it `saw`."""
    return _at_hand.get()


def _distance(before: Sequence[Tensor], now: Sequence[Tensor]) -> float:
    """Root of the mean square of what outputs differ by."""
    pairs = zip(before, now, strict=True)
    squares = [(a.cpu().double() - b.cpu().double()).square().flatten() for a, b in pairs]
    every = torch.cat(squares) if squares else torch.zeros(0)
    return float(every.mean().sqrt()) if every.numel() else 0.0


def _read(path: Path, boxes: Mapping[str, BlackBoxFunction]) -> dict[str, _Kept]:
    """What a file holds of these boxes, which may be anyone's; what does not fit them is left out."""
    try:
        content = checkpoint.load(path)
    except (CheckpointError, OSError):
        return {}
    kept = {}
    for name, box in boxes.items():
        value: Any = content.get(name)
        if not isinstance(value, dict) or value.keys() != {"inputs", "outputs", "noise"}:
            continue
        rows = [
            *zip(box.inputs, value["inputs"], strict=False),
            *zip(box.outputs, value["outputs"], strict=False),
        ]
        arrays = [*value["inputs"], *value["outputs"]]
        fits = len(arrays) == len(rows) == len(box.inputs) + len(box.outputs) and all(
            isinstance(array, Tensor)
            and array.layout is torch.strided
            and tuple(array.shape) == (len(arrays[0]), *spec.shape)
            for spec, array in rows
        )
        number = isinstance(value["noise"], float) or value["noise"] is None
        if fits and number and len(arrays[0]):
            kept[name] = _Kept(tuple(value["inputs"]), tuple(value["outputs"]), value["noise"])
    return kept
