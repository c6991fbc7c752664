"""The soak's classifier: rows that fail by order, in a process of their own, with a limit on their time."""

from __future__ import annotations

from concurrent.futures import Executor

import loky
import numpy as np

from benchmarks.soak import orders
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.wrappers import Parallel
from tasks import digits

LIMIT = 4.0  # seconds that a block of rows may take: a thousand times what it does take
BLOCK = 512


class NearestMean(BlackBoxFunction):
    """Logits of a digit: minus the squared distance to each class's mean, one row at a time in float64.

    A row's answer hangs on that row alone, so that a row which is run again has the same bits.
    """

    inputs = (ArraySpec("image", (1, 8, 8)),)
    outputs = (ArraySpec("logits", (10,)),)

    def __init__(self) -> None:
        images, labels = digits.load()
        self.means = np.stack([images[labels == k].reshape(-1, 64).mean(axis=0) for k in range(10)])
        super().__init__()

    def evaluate(self, image: np.ndarray) -> np.ndarray:
        """`(1, 8, 8)` to `(10,)`."""
        if orders.obey():
            return np.full(10, np.nan)
        distance = self.means - image.astype(np.float64).reshape(64)
        return -np.square(distance).sum(axis=1)


def one_process() -> Executor:
    """A worker that can be killed, and that ends by itself where the one who started it is killed."""
    return loky.get_reusable_executor(1, timeout=20)


def classifier() -> BlackBoxFunction:
    """The box that `--box benchmarks.soak.boxes:classifier` names."""
    return Parallel(NearestMean, one_process, block=BLOCK, timeout=LIMIT)
