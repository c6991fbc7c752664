"""A probe as `check_black_box` makes it, for tests of single checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from blackbox import BlackBoxFunction
from blackbox.conformance.contract import answers
from blackbox.conformance.probe import Probe, keeping


@contextmanager
def probing(
    box: BlackBoxFunction, *samples: np.ndarray, rows: int | None = None, processes: bool = False
) -> Iterator[Probe]:
    probe = Probe(box, samples, rows, 0, processes)
    with keeping(box):
        answers(probe)
        yield probe


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
