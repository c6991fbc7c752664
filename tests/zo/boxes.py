"""Black boxes that the tests of `zo` train through."""

from __future__ import annotations

import numpy as np

from blackbox import ArraySpec, BlackBoxFunction


class Sine(BlackBoxFunction):
    """y = sin(1.3 x), rows of four numbers; fails where x passes `limit`."""

    inputs = (ArraySpec("x", shape=(4,)),)
    outputs = (ArraySpec("y", shape=(4,)),)

    def __init__(self, limit: float = np.inf) -> None:
        super().__init__(failures="keep")
        self.limit = limit
        self.calls: list[int] = []

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        self.calls.append(len(x))
        y = np.sin(1.3 * x)
        y[(x > self.limit).any(axis=1)] = np.nan
        return y
