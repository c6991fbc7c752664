"""`Call`: the arrays of a program's question to the network, and of the answer; and their slots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from blackbox.adapters.hosted import wire
from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, DefinitionError
from blackbox.outside import exactly
from blackbox.spec import ArraySpec, check_specs

Array = np.ndarray[Any, Any]
RESERVED = ("outputs", "ended", "asked")  # names of a run that no call may have
ENDED, IDLE = -1, -2  # in the place of the next call: the run is over; the row waits for another call


@dataclass(frozen=True)
class Call:
    """A call that a program makes from inside of its loop.

        Call("closure", sees=ArraySpec("vorticity", (64, 64)), gives=ArraySpec("tendency", (64, 64)))

    Args:
        name: its name in the program, as in `bb_exchange("closure", ...)`.
        sees: the spec of the array that the program sends, or several specs.
        gives: the spec of the array that the program gets, or several specs; floats.
        stages: how often the program makes the call in one step of its own, such as 4 within a Runge-Kutta
            scheme. The program's way from a call to the next is another function in each stage, and each has
            a box of its own.
        memory: how many earlier rounds of all calls a row shows beside the present one; for a call in stages
            a round is a whole step. The program's next call may depend on them. For a single call without
            stages, models are shown the change of the seen arrays since the call before, and so many earlier
            answers; the arrays then have at most 64 numbers, and no `same`. With 0 a stage shows the earlier
            stages of its own step alone, and a Runge-Kutta scheme depends on no more. None is 1 if there are
            several calls, else 0; for stages, models find out which of the two it is.
        same: the axis of all arrays that counts places of the same kind, such as columns, cells or agents,
            which one network serves: models then learn each place as a row, with its two neighbours. With
            None, models find out where places are four or more and have more than 64 numbers together.

    Raises:
        ConfigurationError, DefinitionError: a value makes no sense.
    """

    name: str
    sees: ArraySpec | Sequence[ArraySpec]
    gives: ArraySpec | Sequence[ArraySpec]
    stages: int = 1
    memory: int | None = None
    same: int | None = None

    def __post_init__(self) -> None:
        """Check and normalise."""
        where = f"Call {self.name!r}"
        if not isinstance(self.name, str) or not self.name.isidentifier() or len(self.name) > wire.NAME:
            raise ConfigurationError(
                f"Call, name: expected an identifier of at most {wire.NAME} letters, got {self.name!r}."
            )
        if self.name in RESERVED:
            raise ConfigurationError(
                f"{where}, name: expected another than {', '.join(RESERVED)}, which a run has itself. "
                "Rename it."
            )
        check_count(where, "stages", self.stages)
        if self.memory is not None:
            check_count(where, "memory", self.memory, least=0)
        for side in ("sees", "gives"):
            specs = getattr(self, side)
            specs = (specs,) if isinstance(specs, ArraySpec) else tuple(specs)
            check_specs(where, side, specs)
            object.__setattr__(self, side, specs)
        for spec in self.given:
            if not spec.floating:
                raise DefinitionError(
                    f"{where}, gives {spec.name!r}: expected floats, got {spec.dtype}. A network's answer is "
                    "rounded, or compared, by the program."
                )
        self._check_same(where)
        names = [spec.name for spec in (*self.seen, *self.given)]
        for name in names:
            if names.count(name) > 1 or len(name) > wire.NAME:
                raise DefinitionError(
                    f"{where}: expected arrays of different names of at most {wire.NAME} letters, got "
                    f"{name!r}. Rename it."
                )

    def _check_same(self, where: str) -> None:
        if self.same is None:
            return
        check_count(where, "same", self.same, least=0)
        carry = [spec for spec in (*self.seen, *self.given) if spec.differentiable and spec.floating]
        counts = {spec.shape[self.same : self.same + 1] for spec in carry}
        if len(counts) > 1 or () in counts:
            shapes = ", ".join(f"{spec.name!r} {spec.shape}" for spec in carry)
            raise ConfigurationError(
                f"{where}, same: expected an axis on which all arrays that carry a gradient have as many "
                f"places, got {self.same} of {shapes}. Say what has no places differentiable=False, or leave "
                "same= out."
            )

    @property
    def seen(self) -> tuple[ArraySpec, ...]:
        """The specs of the arrays that the program sends."""
        return self.sees  # pyright: ignore[reportReturnType]

    @property
    def given(self) -> tuple[ArraySpec, ...]:
        """The specs of the arrays that the program gets."""
        return self.gives  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Slot:
    """An array in a row's vector.

    Attributes:
        name: its name in the specs of boxes.
        spec: the spec of the array, as the call or the host has it.
        place: the place of its numbers in the vector.
    """

    name: str
    spec: ArraySpec
    place: slice

    def of(self, vector: Array) -> Array:
        """Its numbers in a vector, or in several `(rows, size)`, in the spec's shape and dtype."""
        shape = (*vector.shape[:-1], *self.spec.shape)
        return vector[..., self.place].reshape(shape).astype(self.spec.dtype or np.float64)

    def named(self) -> ArraySpec:
        """The spec under the slot's name."""
        return replace(self.spec, name=self.name)


class VectorForm:
    """The layout of one float64 vector that holds all that may be known of a row after a call.

    The first number is the next question: the place of a call and stage in `kinds`, or `ENDED`.

    Args:
        calls: the calls.
        outputs: the specs of a run's outputs at its end.

    Attributes:
        calls: the calls by name.
        kinds: calls and stages, `(name, stage)`.
        memory: how many earlier rounds are shown.
        seen: the slots of the arrays that each call sends, by its name.
        before: the slots of earlier rounds by call, the last round first: the seen arrays, then the given
            ones.
        outputs: the slots of a run's outputs at its end.
        size: the size of the vector.
        width: how many numbers the longest answer has.
    """

    def __init__(self, calls: Sequence[Call], outputs: Sequence[ArraySpec]) -> None:
        self.calls = {call.name: call for call in calls}
        self.kinds = [(call.name, stage) for call in calls for stage in range(call.stages)]
        cyclic = 1 if len(self.kinds) > 1 else 0
        self.memory = max(cyclic if call.memory is None else call.memory for call in calls)
        self.size, several = 1, len(calls) > 1
        self._staged = not several and calls[0].stages > 1
        self.seen: dict[str, list[Slot]] = {}
        self.before: dict[str, list[list[Slot]]] = {}
        for call in calls:
            prefix = f"{call.name}_" if several else ""
            self.seen[call.name] = [self._slot(prefix + spec.name, spec) for spec in call.seen]
            # in stages of one step all earlier ones count
            rounds = max(1, self.memory) * call.stages - 1 if self._staged else self.memory * call.stages
            self.before[call.name] = [
                [self._slot(f"{prefix}{spec.name}_{ago}_before", spec) for spec in (*call.seen, *call.given)]
                for ago in range(1, rounds + 1)
            ]
        self.outputs = [self._slot(spec.name, spec) for spec in outputs]
        self.width = max(numbers_in(call.given) for call in calls)

    def _slot(self, name: str, spec: ArraySpec) -> Slot:
        size = math.prod(spec.shape)
        self.size += size
        return Slot(name, spec, slice(self.size - size, self.size))

    def handed_on(self, asked: str) -> dict[str, str]:
        """Map each remembered array after a call to the array before the call that it equals, by name."""
        names: dict[str, str] = {}
        for name, rounds in self.before.items():
            prefix, call = f"{name}_" if len(self.calls) > 1 else "", self.calls[name]
            now = [prefix + spec.name for spec in (*call.seen, *call.given)]
            for slots in rounds:
                later = [slot.name for slot in slots]
                names |= zip(later, now if name == asked else later, strict=True)
                now = later
        return names

    def earlier(self, kind: tuple[str, int]) -> frozenset[str]:
        """The names of what a stage shows of the step before, where nobody has said that it goes by that."""
        name, stage = kind
        if not self._staged or self.calls[name].memory is not None:
            return frozenset()
        return frozenset(slot.name for slots in self.before[name][stage:] for slot in slots)

    def remembered(self, kind: tuple[str, int] | None = None) -> Iterator[Slot]:
        """The slots of earlier rounds; for a call and stage, the slots of the rounds that it shows."""
        for rounds in self.before.values():
            own_step = self._staged and self.memory == 0 and kind is not None
            for slots in rounds[: kind[1]] if own_step and kind else rounds:
                yield from slots


def numbers_in(specs: Sequence[ArraySpec]) -> int:
    """Return how many numbers arrays have together."""
    return sum(math.prod(spec.shape) for spec in specs)


def check_shapes(call: str, specs: Sequence[ArraySpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse arrays of a program that do not match the specs.

    Args:
        call: the name of the call in messages.
        specs: the specs of the expected arrays.
        shapes: the shapes by name; one array without a name, "", is for a single spec.

    Raises:
        ValueError: names or shapes differ from the specs.
    """
    expected = [spec.name for spec in specs]
    if sorted(shapes) != sorted(expected) and not (set(shapes) == {""} and len(specs) == 1):
        got = ", ".join(name or "one without a name" for name in shapes) or "none"
        raise ValueError(f"{call}: expected the arrays {', '.join(expected)}, and the program sent {got}")
    for spec in specs:
        shape = shapes.get(spec.name, shapes.get(""))
        if shape != spec.shape:
            raise ValueError(
                f"{call}, {spec.name}: expected the shape {spec.shape}, and the program sent {shape}"
            )


def sent_arrays(call: str, specs: Sequence[ArraySpec], arrays: Mapping[str, Array]) -> list[Array]:
    """Return the arrays that a program sent, in the order and dtypes of the specs.

    Args:
        call: the name of the call in messages.
        specs: the specs of the expected arrays.
        arrays: the arrays by name; one array without a name, "", is for a single spec.

    Raises:
        ValueError: names or shapes differ from the specs, or a dtype cannot hold the numbers.
    """
    check_shapes(call, specs, {name: values.shape for name, values in arrays.items()})
    converted = []
    for spec in specs:
        try:
            values = arrays[spec.name] if spec.name in arrays else arrays[""]
            converted.append(exactly(values, spec.dtype or np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{call}, {spec.name}: the program sent what is no {spec.dtype} ({error})"
            ) from None
        if spec.floating and not np.isfinite(converted[-1]).all():
            raise ValueError(f"{call}, {spec.name}: the program sent NaN or infinity")
    return converted
