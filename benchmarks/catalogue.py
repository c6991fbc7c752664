"""Every benchmark: the published table or the claim it stands beside, how it runs, and what it left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from benchmarks import protocol

Size = Literal["ci", "small", "paper"]
ALL: tuple[Size, ...] = ("ci", "small", "paper")
MEASURED: tuple[Size, ...] = ("ci", "small")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: `python -m benchmarks NAME`.
        about: The published table or figure, or the claim.
        where: Module and function in this package, "module:function".
        time: Of size small, on one core.
        sizes: That it has.
        seeds: Of size small.
        results: Files in `benchmarks/results` with committed figures.
        named: Whether the function serves several benchmarks, and takes the name first.
    """

    name: str
    about: str
    where: str
    time: str
    sizes: tuple[Size, ...] = MEASURED
    seeds: int = 1
    results: tuple[str, ...] = ()
    named: bool = False

    @property
    def command(self) -> str:
        """What measures the committed size."""
        seeds = f" --seeds {self.seeds}" if self.where.startswith("images") and self.seeds > 1 else ""
        return f"python -m benchmarks {self.name} --size small{seeds}"

    def run(self, words: Sequence[str]) -> object:
        """Run it with the words of its command line after the name."""
        module, _, name = self.where.partition(":")
        function: Callable[..., object] = getattr(import_module(f"benchmarks.{module}"), name)
        return function(self.name, words) if self.named else function(words)

    def found(self) -> list[dict[str, Any]]:
        """What the committed files hold."""
        paths = [protocol.RESULTS / name for name in self.results]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]

    def measured(self) -> str:
        """Where the committed figures are from: machine and versions, "not run" where there are none."""
        places = []
        for found in self.found():
            versions = found["versions"]
            place = f"{found['machine']['cpu']}, {versions['blackbox-coupling']}, torch {versions['torch']}"
            if place not in places:
                places.append(place)
        return "; ".join(places) if places else "not run"


def _images(name: str, about: str, time: str, *, seeds: int = 1) -> Benchmark:
    results = (f"{name}/result.json",)
    return Benchmark(name, about, "images.reproductions:main", time, ALL, seeds, results, named=True)


DEFENCE = tuple(
    f"table_defense-{case}.json"
    for case in (
        "small-b-logits", "small-b-probabilities-3", "small-b-labels", "small-a-logits",
        "few-b-logits", "labels-b-labels", "shapes-cnn-logits",
    )
)  # fmt: skip
TANGENTS = sorted((protocol.RESULTS / "tangents").rglob("*.json"))  # one a problem, and one with other seeds

BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            "wake_flow_demo",
            "README, docs/applications/wake_flow.md: the demo",
            "wake:table",
            "10 minutes",
            seeds=3,
            results=("wake_flow_demo.json",),
            named=True,
        ),
        Benchmark(
            "wake_flow_small",
            "DeepZero, figure 7, and docs/applications/wake_flow.md: the published grids",
            "wake:table",
            "an hour",
            ALL,
            3,
            results=("wake_flow_small.json",),
            named=True,
        ),
        Benchmark(
            "wake_flow_small_260354",
            "docs/applications/wake_flow.md: the published grids, 260,354 weights",
            "wake:table",
            "40 minutes",
            seeds=2,
            results=("wake_flow_small_260354.json",),
            named=True,
        ),
        Benchmark(
            "tangents",
            "README, docs/applications/boxes.md: learned tangents beside first order and no gradient",
            "tangents.comparison:main",
            "2 hours",
            seeds=3,
            results=tuple(path.relative_to(protocol.RESULTS).as_posix() for path in TANGENTS),
        ),
        Benchmark(
            "table_defense",
            "DeepZero, table of the black-box defence",
            "table_defense:main",
            "15 minutes",
            ALL,
            3,
            DEFENCE,
        ),
        Benchmark(
            "safeguard",
            "docs/applications/denoised_smoothing.md: students of a forest and an SVM",
            "safeguard:main",
            "15 minutes",
            seeds=3,
            results=("denoised_smoothing_safeguard.json", "denoised_smoothing_safeguard-once.json"),
        ),
        _images("figure2_cge_vs_rge", "DeepZero, figure 2: CGE and RGE by network size", "6 minutes"),
        _images("table_query_number", "DeepZero, table of query numbers", "2 minutes"),
        _images("table_smoothing_parameter", "DeepZero, table of smoothing parameters", "2 minutes"),
        _images("figure3_baselines", "DeepZero, figure 3: methods without backpropagation", "9 minutes"),
        _images("figure4_sparsity", "DeepZero, figure 4: accuracy by sparsity", "12 minutes"),
        _images(
            "shapes_sparse",
            "DeepZero, figure 4 at .99, to the end of training",
            "2 hours",
            seeds=3,
        ),
        Benchmark(
            "query_speed",
            "docs/guide/evaluators.md: time of a query beside the published algorithm's",
            "query_speed.comparison:main",
            "half an hour",
            results=("query_speed.json",),
        ),
    )
}
