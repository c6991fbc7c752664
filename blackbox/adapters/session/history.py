"""The history of a row: seed and actions, and the last observation, as bytes that an array holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WORD, DIGEST = 8, 8
HEAD = 2 * WORD + 2 * DIGEST  # seed, number of actions, and the observation in single and double precision


@dataclass(frozen=True)
class History:
    """A seed, and the actions since the reset.

    Attributes:
        seed: the seed of the reset.
        actions: the bytes of the actions, one behind the other.
        seen: the digests, by `seen`, of the simulator's last observation; empty for an array of zeros, which
            stands for the history of a row that failed.
    """

    seed: int
    actions: bytes
    seen: bytes

    @property
    def key(self) -> bytes:
        """The key of a history: two histories share it only if they are the same up to here."""
        return key(self.seed, self.actions)

    def pack(self, size: int, width: int) -> Array:
        """Pack it into an array of bytes, `(size,)` uint8.

        Args:
            size: the size of the array.
            width: the bytes of one action.
        """
        head = self.seed.to_bytes(WORD, "little", signed=True)
        head += (len(self.actions) // width).to_bytes(WORD, "little") + self.seen
        return np.frombuffer((head + self.actions).ljust(size, b"\0"), dtype=np.uint8)

    @classmethod
    def unpack(cls, array: Array, width: int) -> History:
        """Unpack the array that `pack` gives.

        Raises:
            ValueError: the array was not made by `pack`.
        """
        data = array.tobytes()
        count = int.from_bytes(data[WORD : 2 * WORD], "little")
        if HEAD + count * width > len(data):
            raise ValueError(f"{count} actions of {width} bytes do not fit into {len(data)} bytes")
        digests = data[2 * WORD : HEAD]
        seed = int.from_bytes(data[:WORD], "little", signed=True)
        return cls(seed, data[HEAD : HEAD + count * width], digests if any(digests) else b"")


def longest_ways(histories: Array, width: int) -> list[tuple[int, list[bytes]]]:
    """Each seed, and the actions of its longest history.

    Args:
        histories: `(rows, size)`, as `pack` gives them.
        width: bytes of one action.
    """
    longest: dict[int, bytes] = {}
    for row in histories:
        past = History.unpack(row, width)
        if past.seen and len(past.actions) >= len(longest.get(past.seed, b"")):
            longest[past.seed] = past.actions
    return [
        (seed, [actions[first : first + width] for first in range(0, len(actions), width)])
        for seed, actions in longest.items()
    ]


def key(seed: int, actions: bytes) -> bytes:
    """The key of a history."""
    return seed.to_bytes(WORD, "little", signed=True) + actions


def seen(observation: Array) -> bytes:
    """Two digests of an observation, `(16,)`: rounded to single precision, and as it is."""
    return _digest(_single(observation)) + _digest(observation)


def is_seen(observation: Array, digests: bytes) -> bool:
    """Say whether an observation is the one of the digests, in single or in double precision.

    A caller in single precision has it rounded. One in double precision may have rounded it before.
    """
    single = _single(observation)
    if np.array_equal(single, observation):
        return _digest(single) == digests[:DIGEST]
    return _digest(observation) == digests[DIGEST:]


def _single(observation: Array) -> Array:
    with np.errstate(over="ignore"):
        return observation.astype(np.float32) if observation.dtype.kind == "f" else observation


def _digest(observation: Array) -> bytes:
    wide = observation.astype(np.float64 if observation.dtype.kind == "f" else np.int64)
    return hashlib.blake2b((wide + 0).tobytes(), digest_size=DIGEST).digest()  # + 0: -0.0 is 0.0
