"""The first rows that a run's boxes answered, kept to be asked again at a resume: has a box changed?

A box may open a file by name, or be a server. Neither is in the code whose checksum a run keeps, but a model
that was trained again between a kill and a resume answers otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

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
ROUNDING, NOISES = 1e-4, 10.0  # of the largest answer, and of the noise: what is no change of the box
SHARE = 0.005  # of a budget of rows: the most that is asked again


@dataclass
class _Kept:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    @property
    def scale(self) -> float:
        return max((float(output.abs().max()) for output in self.outputs if output.numel()), default=0.0)


class FirstRows:
    """The first rows of each box of a run, in its folder: small ones, none of a box that cannot be set."""

    def __init__(self, folder: Path, boxes: Mapping[str, BlackBoxFunction]) -> None:
        self._folder = folder.absolute()  # a box may change the working directory
        self._boxes = {name: box for name, box in boxes.items() if box.settable}
        self._names = {id(box): name for name, box in self._boxes.items()}
        self._records = _read(self._folder / FILE, self._boxes) if group.rank() == 0 else {}
        self._recorded_names = frozenset(self._records)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which the first answers of boxes, or of `KeptAnswers`, are kept."""

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
        """Keep the first rows of a box."""
        name = self._names.get(id(box))
        if name is not None and name not in self._records and group.rank() == 0:
            self._keep(name, box, inputs, outcome)

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
            self._records[name] = _Kept(first, answers)
            try:
                content = {name: vars(record) for name, record in self._records.items()}
                checkpoint.save(self._folder / FILE, content)
            except OSError:
                self._names = {}  # it is an aid; what must not be lost says so by itself

    def ask_again(self, budget: int | None, device: str) -> None:
        """Ask the rows that earlier processes of the run have kept, and warn of boxes with other answers.

        Where answers differ by more than rounding, the rows are asked twice more: a box that differs as much
        from itself is noisy, and there is no warning. The rows count, and are no more than a small part of a
        budget.

        Warns:
            CheckpointWarning: A box has changed since the run began; it is in the folder for the report.
        """
        lines = []
        with rows_run_by(None), torch.random.fork_rng(devices=()):
            for name in self._recorded_names:
                sentence = self._compared(name, budget, device)
                lines += [sentence] if sentence else []
        if lines:
            with suppress(OSError, RunFolderError):  # the warning has it
                changed_boxes.add(self._folder, lines)
        for sentence in lines:
            warn(
                f"{self._folder}: {sentence} Put back what it was, if that was not meant, and resume again; "
                "or begin a new run. This one goes on with the box as it is now.",
                CheckpointWarning,
            )

    def _compared(self, name: str, budget: int | None, device: str) -> str:
        """Compare a box's answers with the kept ones, and describe the differences; "" for none."""
        record, box = self._records[name], behind_caches(evaluated(self._boxes[name]))
        bounds = [part for part in stack(self._boxes[name]) if isinstance(part, Budgeted)]
        most = [part.rows for part in bounds] + ([] if budget is None else [budget])
        rows = min([record.rows, *(int(SHARE * rows) for rows in most), *(p.rows_left // 3 for p in bounds)])
        if rows < 1:
            return ""  # the last rows of the run's own work would be missing
        sample = _Kept(*(tuple(array[:rows] for array in some) for some in (record.inputs, record.outputs)))
        inputs, answers = tuple(array.to(device) for array in sample.inputs), list[Outcome]()
        try:
            for _ in range(3):
                answers.append(box.run_rows(inputs))
                answered = [row for row in range(rows) if all(row not in now.failed for now in answers)]
                old_rows, *got = (rows_of(answer.outputs, answered) for answer in (sample, *answers))
                noise = max((_distance(got[0], again) for again in got[1:]), default=0.0)
                if not answered or _distance(old_rows, got[0]) <= ROUNDING * sample.scale + NOISES * noise:
                    return ""
        except Exception:  # a budget, or a box of other outputs: what comes next says so by itself
            return ""
        largest = max(
            float((a.double() - b.cpu().double()).abs().max()) for a, b in zip(old_rows, got[0], strict=True)
        )
        each_time = "the same each time" if noise == 0 else f"with noise of {noise:.2g}"
        return (
            f"Box {name!r} has changed since the run began, {self._boxes[name]!r}: expected its answers to "
            f"{counted(len(answered), 'row')} that it answered then, got others, by up to {largest:.3g} "
            f"where the largest answer was {sample.scale:.3g}; asked three times now, it answered "
            f"{each_time}. What is trained and judged from here on, and what was before, is of two boxes: "
            "look for a model or data file that it opens, for the server that it asks, or for a random state "
            "that it keeps."
        )


_at_hand: ContextVar[FirstRows | None] = ContextVar("tasks.rows.first_rows", default=None)


def at_hand() -> FirstRows | None:
    """Return the rows of the `watching` block here; code that answers for boxes reports rows to it."""
    return _at_hand.get()


def _distance(before: Sequence[Tensor], now: Sequence[Tensor]) -> float:
    """The root mean square of outputs' differences."""
    pairs = zip(before, now, strict=True)
    squares = [(a.cpu().double() - b.cpu().double()).square().flatten() for a, b in pairs]
    every = torch.cat(squares) if squares else torch.zeros(0)
    return float(every.mean().sqrt()) if every.numel() else 0.0


def _read(path: Path, boxes: Mapping[str, BlackBoxFunction]) -> dict[str, _Kept]:
    """Read the rows of these boxes from a file, which may be anyone's; parts that do not fit are left out."""
    try:
        content = checkpoint.load(path)
    except (CheckpointError, OSError):
        return {}
    records = {}
    for name, box in boxes.items():
        with suppress(KeyError, TypeError, AttributeError, IndexError):
            record = _Kept(**content[name])
            shapes = [
                [tuple(array.shape) for array in some if array.layout is torch.strided]
                for some in (record.inputs, record.outputs)
            ]
            expected = [[(record.rows, *spec.shape) for spec in specs] for specs in (box.inputs, box.outputs)]
            if record.rows and shapes == expected:
                records[name] = record
    return records
