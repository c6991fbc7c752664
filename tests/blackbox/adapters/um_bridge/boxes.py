"""Black boxes to serve."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from blackbox import ArraySpec, BlackBoxFunction

NINE, EIGHT = 9.0, 8.0  # what `Shapes` raises at, and what it answers with NaN


class Shapes(BlackBoxFunction):
    """Inputs and outputs of several shapes, none of them a vector."""

    inputs = (ArraySpec("field", (2, 3)), ArraySpec("factor", ()))
    outputs = (ArraySpec("field", (3, 2)), ArraySpec("energy", ()))

    def evaluate(self, field: Any, factor: Any) -> Any:
        if factor == NINE:
            raise ValueError("nine")
        if factor == EIGHT:
            return np.full((3, 2), np.nan), factor
        return np.sin(field).T * factor, (field**2).sum()


class Cubes(BlackBoxFunction):
    """`x -> x^3`, ten numbers."""

    inputs = (ArraySpec("x", (10,)),)
    outputs = (ArraySpec("y", (10,)),)

    def evaluate(self, x: Any) -> Any:
        return x**3


class Typed(BlackBoxFunction):
    """One input of each kind of dtype; gives back what it was given, as the specs say."""

    inputs = (
        ArraySpec("single", (2,), "float32"),
        ArraySpec("whole", (), "int64"),
        ArraySpec("small", (2,), "uint8"),
        ArraySpec("flag", (), "bool"),
    )
    outputs = inputs

    def evaluate(self, *arrays: Any) -> Any:
        return arrays


class Mixing(BlackBoxFunction):
    """Three numbers to four, smooth and not linear; row by row, so that rows do not depend on company."""

    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (4,)),)
    weights = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -0.6], [-0.7, 0.1, 0.9], [0.4, 0.4, 0.4]])

    def evaluate(self, x: Any) -> Any:
        return np.sin(self.weights @ x) + 0.5 * self.weights @ x


class Waiting(BlackBoxFunction):
    """Waits until it is let go on; keeps how many were inside at once, and which rows came."""

    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        self.seconds = seconds
        self.go_on, self.entered = threading.Event(), threading.Semaphore(0)
        self.lock, self.inside, self.most, self.rows = threading.Lock(), 0, 0, []

    def evaluate(self, x: Any) -> Any:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.rows.append(float(x))
        self.entered.release()
        if self.seconds is None:
            assert self.go_on.wait(30)
        else:
            time.sleep(self.seconds)
        with self.lock:
            self.inside -= 1
        return 2 * x
