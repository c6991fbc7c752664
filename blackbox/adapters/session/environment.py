"""Simulators that are reset and stepped: their actions, their answers, and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from blackbox.failures import exits_as_errors

Array = np.ndarray[Any, Any]
Answer = tuple[Array, ...]  # what a simulator gave: the observation, and the further outputs


class Environment(Protocol):
    """A simulator that cannot be set; in the order of calls that a `Session` makes."""

    def reset(self, seed: int, /) -> Any:
        """Begin anew, the same way for the same seed, whatever was before; returns the first observation."""

    def step(self, action: Any, /) -> Any:
        """Go on by one step; returns the next observation, or a tuple of it and further outputs."""


@dataclass
class SessionCounts:
    """The counts of a `Session`, beside the rows that its ledger counts.

    Attributes:
        made: environments that were made.
        resets: calls of `reset`.
        steps: calls of `step`, those of replays included.
        replays: rows for which actions had to be taken once more, as no live environment was where they
            begin.
        replayed_steps: calls of `step` in them.
        restored: rows that went on from a snapshot.
        compared: comparisons of a snapshot with a replay, of the first restored row and as histories grow,
            and of seeds that begin alike.
        compared_steps: calls of `step` in them.
        repeated: rows that were answered by what a live environment gave last.
        crashes: environments that raised an error and were thrown away.
    """

    made: int = 0
    resets: int = 0
    steps: int = 0
    replays: int = 0
    replayed_steps: int = 0
    restored: int = 0
    compared: int = 0
    compared_steps: int = 0
    repeated: int = 0
    crashes: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The state of an environment that `save` gave, and its last answer then."""

    state: Any
    answer: Answer


@dataclass
class Live:
    """An environment, and where it is."""

    environment: Any
    answer: Answer  # the last one
    before: bytes = b""  # `seen` of the observation that the last step went on from


def same_answer(one: Answer | None, other: Answer | None) -> bool:
    """Say whether two answers are equal; None, of a step that raised, is equal to None alone."""
    if one is None or other is None:
        return one is other
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True))


def first_unlike(expected: Sequence[Answer | None], answers: Sequence[Answer | None]) -> int | None:
    """Return after how many steps two ways part; None where they do not."""
    pairs = zip(expected, answers, strict=True)
    return next((number for number, both in enumerate(pairs) if not same_answer(*both)), None)


def close_quietly(environment: Any) -> None:
    """Close an environment that can be closed, whatever it says."""
    method = getattr(environment, "close", None)
    if callable(method):
        with suppress(Exception), exits_as_errors("the simulator"):
            method()
