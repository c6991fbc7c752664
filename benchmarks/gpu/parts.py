"""The parts, in the order of what they are worth, and where they are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Size = Literal["ci", "small"]
LIMIT = 8 * 60.0  # seconds, after which a part is stopped


@dataclass(frozen=True)
class Place:
    """Where and how large a part runs.

    Attributes:
        device: "cuda", or "cpu", where all that is measured is that the part runs.
        size: "small" is what is to be known; "ci" takes seconds on a CPU.
        scratch: A folder that stays between two runs of a part: what it has begun it goes on with there.
    """

    device: str
    size: Size
    scratch: Path

    @property
    def tiny(self) -> bool:
        """Whether it is only to show that the part runs."""
        return self.size == "ci"


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: On the command line, and of its file.
        group: Its heading on the page, which parts may share; may be chosen for all of them.
        about: What it shows.
        minutes: How long it will take, which is a guess until it has run on a GPU.
        work: Gives its results, plain values; a table in "rows".
    """

    name: str
    group: str
    about: str
    minutes: float
    work: Callable[[Place], dict[str, Any]]


def _later(module: str, function: str, **options: Any) -> Callable[[Place], dict[str, Any]]:  # noqa: ANN401
    """A function of a module of this package, imported when it is called."""

    def work(place: Place) -> dict[str, Any]:
        return partial(getattr(import_module(f"benchmarks.gpu.{module}"), function), **options)(place)

    return work


def _queries(network: str, rows: int, minutes: float, blocks: int | None = None) -> Part:
    return Part(
        f"query-speed-{network}-{rows}",
        "query-speed",
        f"time, error and memory of a query: {network}, batches of {rows}",
        minutes,
        _later("queries", "query_speed", network=network, rows=rows, blocks=blocks),
    )


def _wake(seed: int) -> Part:
    return Part(
        f"wake-small-seed-{seed}",
        "wake-small",
        f"wake-flow --preset small with 56,898 weights, seed {seed}; goes on where it was stopped",
        8,
        _later("training", "wake_small", seed=seed),
    )


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("tests", "tests", "pytest -m gpu: oracles and determinism", 4, _later("checks", "tests")),
        _queries("resnet20", 256, 4),
        _queries("resnet20", 64, 3),
        _queries("resnet20", 16, 2),
        _queries("wake", 256, 3),
        _queries("resnet56", 256, 6, 5),
        _queries("dncnn", 256, 6, 4),
        Part(
            "wake-speed",
            "wake-speed",
            "steps a second of the wake's solver, by grid and rows, beside PhiFlow's own on the same card",
            5,
            _later("solver", "wake_speed"),
        ),
        Part(
            "tangents",
            "tangents",
            "what learning a tangent and going back through it take of a step, 32 x 64 to 128 x 256",
            4,
            _later("solver", "tangents"),
        ),
        *map(_wake, range(3)),
        Part(
            "shapes-epoch",
            "epochs",
            "an epoch of image-classification --preset paper at a sparsity of .99, on shapes",
            6,
            _later("training", "epoch", dataset="shapes"),
        ),
        Part(
            "ranks",
            "ranks",
            "two processes on one card, by NCCL or else gloo: the bits of one",
            1,
            _later("checks", "ranks"),
        ),
        Part(
            "cifar10-epoch",
            "epochs",
            "an epoch on files of CIFAR-10's format and size, with drawn pixels",
            6,
            _later("training", "epoch", dataset="cifar10"),
        ),
    )
}
