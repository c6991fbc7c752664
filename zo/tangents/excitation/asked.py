"""The rows that a box was asked for; they show the inputs whose derivative cannot be learned from values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents.excitation.dither_state import FIRST
from zo.tangents.excitation.identified import DETERMINED, FEW, constant, sketch, unexplained
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import RecordedCall

FREE = 0.2  # of the variance of a dithered input, unexplained: above it is dithered no more; decision 121
ROWS, NUMBERS = 256, 2**20  # of a box that are kept to judge by, and numbers in them; decision 121
JUDGED = ROWS // 4  # numbers of inputs together, of which so many rows may say that one is free; decision 239
FAINT = 0.15  # of how far weights move an input: it hardly varies where its spread is less; decision 151
MIXED = 1e3  # times between the sizes of two numbers: they are in different units then; decision 230

Spread = Callable[[int, Tensor], float | None]  # of an input's numbers over weights, see `spread_of_weights`


@dataclass
class AskedInputs:
    """The record of one box's inputs.

    Attributes:
        rows: the last rows, by input, `(rows, size)`, as the objective asked for them.
        sizes: how many numbers each input has, of which `rows` may have fewer.
        states: for each input, whether an output has its name and shape, or its shape where no name says so:
            the answer before moves it most. Of several with that shape it is the one that weights move, where
            none is handed on as it is.
        runs: the row of the batch that each row of the last step belongs to.
        seen: the number of rows ever.
        judged: the number of rows ever at the last judgement.
        faint: places of inputs that vary far less over rows than weights move them; None before a step with
            two rows of the batch or more.
    """

    rows: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    states: list[bool] = field(default_factory=list)
    runs: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    seen: int = 0
    judged: int = 0
    faint: tuple[int, ...] | None = None

    def keep(
        self,
        box: BlackBoxFunction,
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        candidates: Sequence[int],
        batch: int,
        handed: Collection[int] = (),
    ) -> None:
        """Take the rows of a step's calls of the box; keep a few sums of large inputs that are no candidates.

        Args:
            box: the box.
            calls: its calls.
            pairs: the rows that each call shows a tangent.
            candidates: inputs that may be dithered, by their places.
            batch: how many rows the batch has.
            handed: inputs that are an earlier answer, by their places, see `handed_on`.
        """
        alive = torch.cat([part.alive for part in pairs]).nonzero().flatten()
        counts = [len(part.z) for part in pairs]
        places = [torch.arange(n) // (n // batch) if n % batch == 0 else torch.arange(n) for n in counts]
        columns = []
        for which, spec in enumerate(box.inputs):
            rows = torch.cat([call.asked(which).reshape(len(call.asked(which)), -1) for call in calls])[alive]
            columns.append(
                rows[:, :0] if not spec.modelled else rows if which in candidates else sketch(rows)
            )
        self.sizes = [math.prod(spec.shape) if spec.modelled else 0 for spec in box.inputs]
        named, shapes = {(s.name, s.shape) for s in box.outputs}, {s.shape for s in box.outputs}
        self.states = [(spec.name, spec.shape) in named for spec in box.inputs]
        if not any(self.states):
            alike = [which for which, spec in enumerate(box.inputs) if spec.shape in shapes]
            if len(alike) > 1:  # of one call nothing says which
                moved = [which for which in alike if which in candidates]
                corrected = len(calls) > 1 and len(moved) == 1 and not set(handed).intersection(alike)
                alike = moved if corrected else []
            self.states = [which in alike for which in range(len(box.inputs))]
        self.seen += len(alive)
        widths = [column.shape[1] for column in columns]
        if [column.shape[1] for column in self.rows] != widths:
            self.rows = [column[:0] for column in columns]
        most = max(4, min(ROWS, NUMBERS // max(1, sum(widths))))
        self.rows = [torch.cat(parts)[-most:] for parts in zip(self.rows, columns, strict=True)]
        self.runs = torch.cat(places)[alive.cpu()][-most:]

    @property
    def due(self) -> bool:
        """True if rows have doubled since inputs were last judged."""
        return self.seen >= 2 * self.judged

    def judge(
        self,
        specs: Sequence[ArraySpec],
        candidates: Sequence[int],
        spread: Spread,
        before: Mapping[int, Tensor],
        *,
        waits: bool,
    ) -> tuple[dict[int, Tensor], bool]:
        """Choose the inputs to dither, and their units: inputs that values do not identify.

        An input that is the same in all rows of a step, such as a prompt, is not identified either: from step
        to step it goes along a line, and shows only the derivative along that line. An input that hardly
        varies is not identified, see `faint`. Of the others, the input that is explained best is dithered
        first; it then explains no other.

        Args:
            specs: the specs of all inputs.
            candidates: inputs that may be dithered, by their places.
            spread: see `Spread`.
            before: the units of the inputs dithered so far, by place.
            waits: whether a response to their dither is waited for. Then no dither is given up, since a few
                rows of two networks are not judged twice.

        Returns:
            The units of the inputs to dither from now on, see `DitherState`, and whether an input that the
            others explain is dithered now and was not before.
        """
        self.judged = self.seen
        units: dict[int, Tensor] = {}
        # decision 128; of a step of one row nothing is known
        of_step = len(self.runs) if len(self.runs.unique()) > 1 else 0
        same = {which: constant(self.rows[which][-of_step:]) for which in candidates}
        for which, numbers in same.items():
            by_weights = spread(which, numbers) if bool(numbers.any()) else None
            if by_weights:
                units[which] = _unit_of_constant(specs[which], self.rows[which], numbers, by_weights)
        dithers = [which for which in candidates if waits and which in before]
        dithers += [which for which in self.faint or () if which in candidates and which not in dithers]
        units |= {w: before[w] if w in before else self._of_faint(specs, w, spread) for w in dithers}
        begins = any(which not in before for which in dithers)
        while True:
            shares = {w: self._unexplained(w, dithers) for w in candidates if w not in dithers}
            least = min(shares, key=shares.__getitem__, default=None)
            if least is None or shares[least] > (FREE if least in before else DETERMINED):
                break
            dithers.append(least)
            if least in before:
                units[least] = before[least]
                continue
            by_weights = spread(least, ~same[least])
            if by_weights != 0.0:  # no weight moves them
                units[least] = units.get(least, 0.0) + _unit(specs[least], self.rows[least], by_weights)
                begins = True
        for which, unit in units.items():  # the size of a dither goes by the first unit
            first = before.get(which, torch.zeros_like(unit))
            units[which] = torch.where(first > 0, first, unit)
        return dict(sorted(units.items())), begins

    def see_spread(self, candidates: Sequence[int], spread: Spread) -> None:
        """See, once, which inputs' numbers differ between rows, but hardly; see `faint`.

        Few rows then determine their derivative badly: in a model's units such an input counts as much as all
        others, so its derivative is overestimated, by up to the ratio of the two spreads.
        """
        if self.faint is None and len(self.runs.unique()) > 1:  # one row's calls are too much alike
            self.faint = tuple(which for which in candidates if self._hardly_varies(which, spread))

    def _of_faint(self, specs: Sequence[ArraySpec], which: int, spread: Spread) -> Tensor:
        """The unit of an input that hardly varies, number by number."""
        return _unit(specs[which], self.rows[which], spread(which, ~constant(self.rows[which])))

    def _hardly_varies(self, which: int, spread: Spread) -> bool:
        rows = self.rows[which]
        varies = ~constant(rows)
        over_rows = (
            float(rows.double().var(dim=0, correction=0)[varies].mean().sqrt()) if varies.any() else 0.0
        )
        return over_rows > 0 and over_rows < FAINT * (spread(which, varies) or 0.0)

    def _unexplained(self, which: int, dithers: Sequence[int]) -> float:
        """The share of an input's variance that the others do not explain.

        It is 0 for an input that the others might determine, since rows are too few for so many numbers. A
        state that a network corrects is none of these.
        """
        other_inputs = [number for number in range(len(self.rows)) if number not in (which, *dithers)]
        varying = [number for number in other_inputs if not bool(constant(self.rows[number].double()).all())]
        numbers = sum(self.sizes[number] for number in varying) + min(self.sizes[which], FEW)
        few = self.sizes[which] > FEW and len(self.rows[which]) <= numbers + 1
        if varying and not self.states[which] and (few or numbers > JUDGED):
            return 0.0
        return unexplained(self.rows, self.runs, which, dithers)


def handed_on(calls: Sequence[RecordedCall]) -> set[tuple[int, int]]:
    """Boxes and inputs, by their places, that are an earlier answer: states, which are shown in full."""
    states: dict[tuple[int, int], bool] = {}
    answers: list[Tensor] = []
    for call in calls:
        for number in range(len(call.inputs)):
            array = call.asked(number)
            if answers:
                same = any(array.shape == y.shape and torch.equal(array, y) for y in answers)
                states[call.box, number] = same and states.get((call.box, number), True)
        answers = [call.answered(number) for number in range(len(call.outputs))] + answers[:8]
    return {where for where, always in states.items() if always}


def _unit(spec: ArraySpec, rows: Tensor, by_weights: float | None) -> Tensor:
    """The spec's scale, or the spread of each number that varies, or of weights; 0 for the others."""
    varies = ~constant(rows).cpu()
    spread = rows.double().std(dim=0, correction=0).cpu()
    unit = _scale(spec, torch.maximum(spread, _of_each(rows.double().cpu(), varies, by_weights or 0.0)))
    return torch.where(varies, unit, 0.0).reshape(spec.shape)


def _of_each(rows: Tensor, varies: Tensor, by_weights: float) -> Tensor:
    """The spread that weights give each number; by its size where numbers are in different units.

    A resistor of a thousand ohms and a capacitor of 1e-8 farads have one spread, which is the resistor's.
    """
    size = rows.square().mean(dim=0).sqrt()
    some = size[varies & (size > 0)]
    if len(some) < 2 or float(some.max()) < MIXED * float(some.min()):
        return torch.full_like(size, by_weights)
    return by_weights * size / some.square().mean().sqrt()


def _unit_of_constant(spec: ArraySpec, rows: Tensor, same: Tensor, by_weights: float) -> Tensor:
    """The spec's scale, or part of a number's size, or the spread that weights give it; 0 for the others."""
    size = FIRST * rows.double().abs().mean(dim=0).cpu()
    unit = _scale(spec, torch.where(size > 0, size, by_weights))
    return torch.where(same.cpu(), unit, 0.0).reshape(spec.shape)


def _scale(spec: ArraySpec, spread: Tensor) -> Tensor:
    """The scale that a spec has, else what was measured, `(size,)`."""
    if spec.scale is None:
        return spread
    return torch.tensor(spec.scale, dtype=torch.float64)
