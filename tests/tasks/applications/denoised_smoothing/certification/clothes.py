"""A half-space behind HTTP: it rounds, drops connections, fails, answers too late, and kills its client."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blackbox import ArraySpec, BlackBoxFunction, Budgeted, Cached, Retrying
from blackbox.adapters import from_callable
from blackbox.adapters.um_bridge import UmBridge
from tasks.applications.denoised_smoothing import SmoothedClassifier
from tasks.applications.denoised_smoothing.certification import Certificate
from tasks.applications.denoised_smoothing.classifiers import Metered
from tests.blackbox.adapters.um_bridge.servers import Handler
from tests.tasks.applications.denoised_smoothing.certification.classifiers import at_distance

IMAGES, N0, N = 3, 10, 40
PATIENCE = 2.0  # seconds, which a busy machine's answer does not take either


def probabilities(pixels: Any) -> list[float]:
    """`(2,)` rounded to three decimals: class 1 the more, the farther beyond the plane."""
    other = 1 / (1 + math.exp(10 * (0.6 * pixels[0] + 0.8 * pixels[1] - 0.7)))
    return [round(other, 3), round(1 - other, 3)]


class Service:
    """What the server does with a request; it keeps what it was asked, and what it answered in time."""

    def __init__(self, trouble: bool = True) -> None:
        self.trouble = trouble
        self.asked: list[tuple[float, ...]] = []
        self.answered: list[tuple[float, ...]] = []
        self.kill: Callable[[int], int | None] = lambda count: None  # which process, at this request

    def __call__(self, handler: Handler) -> None:
        row = tuple(handler.given)
        self.asked.append(row)
        count = len(self.asked)
        victim = self.kill(count)
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
            handler.close_connection = True
        elif self.trouble and count % 7 == 3:
            handler.close_connection = True  # seen, and dropped
        elif self.trouble and count % 11 == 5:
            handler.send(b'{"error": {"type": "Busy", "message": "try later"}}', 500)
        elif self.trouble and count == 30:
            handler.wait_in_vain()
        else:
            self.answered.append(row)
            handler.send(json.dumps({"output": [probabilities(row)]}).encode())


def stack(url: str, folder: Path, budget: int) -> BlackBoxFunction:
    """Attempts are counted on disk before they are sent; an answer is on disk before the next is asked."""
    # a request whose connection breaks has failed, and is asked again within the budget
    box = UmBridge(url, timeout=PATIENCE, failures="keep")
    metered = Metered(box, folder / "queries.count")
    return Cached(Retrying(Budgeted(metered, rows=budget), attempts=6), folder / "queries.db", block=1)


def certify(box: BlackBoxFunction, file: Path | None = None) -> list[Certificate]:
    """Three images at growing distance from the plane."""
    images = torch.cat([at_distance(0.1 * (k + 1), 1) for k in range(IMAGES)])
    smoothed = SmoothedClassifier(box, sigma=0.25, block=16)
    return smoothed.certify(images, torch.ones(IMAGES, dtype=torch.int64), N0, N, 0.05, file=file)


def here() -> BlackBoxFunction:
    """The same classifier without HTTP."""
    return from_callable(
        lambda pixels: np.array(probabilities(pixels)),
        inputs=(ArraySpec("pixels", (2,)),),
        outputs=(ArraySpec("probabilities", (2,)),),
    )


def main() -> None:
    """Certify through the server, in a process that can be killed: URL, folder, budget."""
    import warnings

    warnings.simplefilter("ignore")
    folder = Path(sys.argv[2])
    certify(stack(sys.argv[1], folder, int(sys.argv[3])), folder / "certificates.tsv")


if __name__ == "__main__":
    main()
