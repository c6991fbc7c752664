"""The parts, in the order of what they are worth, and where they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        so_far: What a part puts in as it measures, "rows" for one: in its file even if it is stopped.
    """

    device: str
    size: Size
    scratch: Path
    so_far: dict[str, Any] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Whether the place is only to show that the part runs."""
        return self.size == "ci"

    def table(self, name: str = "rows") -> list[dict[str, Any]]:
        """An empty table of what is measured so far, to put rows in."""
        return self.so_far.setdefault(name, [])


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: On the command line, and of its file.
        group: Its heading on the page, which parts may share; may be chosen for all of them.
        about: What it shows.
        minutes: How long it will take, which is a guess until it has run on a GPU.
        where: Module and function in this package, "module:function".
        options: Of the function.
    """

    name: str
    group: str
    about: str
    minutes: float
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def work(self, place: Place) -> dict[str, Any]:
        """The results of the part, plain values; a table is in "rows"."""
        module, _, function = self.where.partition(":")
        return getattr(import_module(f"benchmarks.gpu.{module}"), function)(place, **self.options)


def _queries(network: str, rows: int, minutes: float, blocks: int = 5) -> Part:
    about = f"time, error and memory of a query: {network}, batches of {rows}"
    options = {"network": network, "rows": rows, "blocks": blocks}
    return Part(
        f"query-speed-{network}-{rows}", "query-speed", about, minutes, "queries:query_speed", options
    )


def _wake(seed: int) -> Part:
    about = f"wake-flow --preset small with 56,898 weights, seed {seed}; goes on where it was stopped"
    return Part(f"wake-small-seed-{seed}", "wake-small", about, 8, "training:wake_small", {"seed": seed})


def _epoch(dataset: str, about: str) -> Part:
    return Part(f"{dataset}-epoch", "epochs", about, 3, "training:epoch", {"dataset": dataset})


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            "tests",
            "tests",
            "pytest -m gpu: oracles, determinism, two processes on one card by gloo and NCCL",
            3,
            "checks:tests",
        ),
        _queries("resnet20", 256, 3),
        _queries("resnet20", 64, 2),
        _queries("resnet20", 16, 1),
        _queries("wake", 256, 2),
        _queries("resnet56", 256, 6),
        _queries("dncnn", 256, 6, 4),
        Part(
            "wake-speed",
            "wake-speed",
            "steps a second of the wake's solver, by grid and rows, beside PhiFlow's own on the same card",
            2,
            "solver:wake_speed",
        ),
        Part(
            "tangents",
            "tangents",
            "what learning a tangent and going back through it take of a step, 32 x 64 to 128 x 256",
            1.5,
            "solver:tangents",
        ),
        *map(_wake, range(3)),
        _epoch("shapes", "steps of image-classification --preset paper at a sparsity of .99, on shapes"),
        _epoch("cifar10", "steps on files of CIFAR-10's format and size, with drawn pixels"),
    )
}
