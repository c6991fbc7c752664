"""Every benchmark: the published table or the claim it stands beside, how it runs, and what it left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from benchmarks import protocol

SMALL = "--size small"
OTHER_OPTIONS = ("0.1.0",)  # versions whose options had other meanings: --seeds was a number of seeds
ALL, MEASURED = ("ci", "small", "paper"), ("ci", "small")


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
        results: File in `benchmarks/results` with committed figures -> the options that measure them.
        named: Whether the function serves several benchmarks, and takes the name first.
    """

    name: str
    about: str
    where: str
    time: str
    sizes: tuple[str, ...] = MEASURED
    seeds: int = 1
    results: Mapping[str, str] = field(default_factory=dict)
    named: bool = False

    @property
    def commands(self) -> dict[str, list[str]]:
        """What measures the committed figures: command -> the files that it writes."""
        files_of: dict[str, list[str]] = {}
        for file, words in self.results.items():
            files_of.setdefault(f"python -m benchmarks {self.name} {words}", []).append(file)
        return files_of

    def run(self, words: Sequence[str]) -> object:
        """Run it with the words of its command line after the name."""
        module, _, name = self.where.partition(":")
        function: Callable[..., object] = getattr(import_module(f"benchmarks.{module}"), name)
        return function(self.name, words) if self.named else function(words)

    def measured(self) -> str:
        """Where the committed figures are from: machine and versions, "not run" where there are none."""
        return origin(self.results)


def origin(files: Iterable[str], command: str | None = None) -> str:
    """Machine and versions of committed files; "not run" where there are none.

    Args:
        files: In `benchmarks/results`.
        command: What measures them today: another one in a file, of an earlier version or with more options,
            is said.
    """
    places = []
    for result in filter(None, map(read, files)):
        versions, made = result["versions"], result["command"]
        made = made if isinstance(made, str) else " ".join(made)
        place = f"{result['machine']['cpu']}, {versions['blackbox-coupling']}, torch {versions['torch']}"
        if command is not None and not _takes(command, made):
            part = made.startswith(command) and versions["blackbox-coupling"] not in OTHER_OPTIONS
            place += ", with more options" if part else f", by an earlier version's `{made}`"
        if place not in places:
            places.append(place)
    return "; ".join(places) if places else "not run"


def _takes(command: str, made: str) -> bool:
    """Whether a file's command is one of today's: tangents name their problem and methods too."""
    more = set(made.split()) - set(command.split())
    return set(command.split()) <= set(made.split()) and "--seeds" not in more


def read(name: str) -> dict[str, Any]:
    """A committed result; an empty one where there is none."""
    path = protocol.RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


SINCE = {
    "tangents/*.json": "Their curves were added at different states of versions 0.2.0 and 0.3.0; machine and "
    "versions of a file are those of the last ones, and `origins` in it has them by method since 0.3.0.",
}
"""A list of what committed files hold and today's code no longer gives."""

LONG = ("ks-26-8-unroll-8", "ks-52-12", "kolmogorov", "wake-30k-unroll-16", "wake-260k", "wake-32x64")
"""Problems for tangents that have one seed."""


def _images(name: str, about: str, time: str, *, seeds: int = 1) -> Benchmark:
    results = {f"{name}/result.json": SMALL}
    return Benchmark(name, about, "images.reproductions:main", time, ALL, seeds, results, named=True)


def _tangents() -> dict[str, str]:
    """A file for each problem, one with other seeds, and one of the boxes alone."""
    words_of = {"tangents_uncorrected.json": f"{SMALL} --uncorrected"}
    for path in sorted((protocol.RESULTS / "tangents").rglob("*.json")):
        size = "--size paper" if path.stem.endswith("-paper") else SMALL
        words = f"{size} --problems {path.stem.removesuffix('-paper')}"
        if path.parent.name == "fresh":
            words += " --folder fresh --seeds 3 4 5"
        elif size == SMALL:
            words += f" --seeds {'0' if path.stem in LONG else '0 1 2'}"
        words_of[path.relative_to(protocol.RESULTS).as_posix()] = words
    return words_of


OF_ROWS = {"by_batch": " --batches", "controls": " --controls", "steps": " --steps"}  # by folder


def _rows() -> dict[str, str]:
    """A file for each problem, one with its controls, one by steps, and one by size of batch."""
    words_of = {}
    for path in sorted((protocol.RESULTS / "rows").rglob("*.json")):
        more = OF_ROWS.get(path.parent.name, "")
        words_of[path.relative_to(protocol.RESULTS).as_posix()] = f"{SMALL} --problems {path.stem}{more}"
    return words_of


def _budget() -> dict[str, str]:
    """A file for each problem."""
    files = sorted((protocol.RESULTS / "budget").glob("*.json"))
    return {
        path.relative_to(protocol.RESULTS).as_posix(): f"{SMALL} --problems {path.stem}" for path in files
    }


def _meshes() -> dict[str, str]:
    """A file for each box."""
    files = sorted((protocol.RESULTS / "meshes").glob("*.json"))
    return {path.relative_to(protocol.RESULTS).as_posix(): SMALL for path in files}


def _mosaic() -> dict[str, str]:
    """A file for each solver, and one for the recovery."""
    files = sorted((protocol.RESULTS / "mosaic").glob("*.json"))
    sizes = {
        path: next((end for end in ("terminal", "paper") if end in path.stem), "small") for path in files
    }
    return {path.relative_to(protocol.RESULTS).as_posix(): f"--size {size}" for path, size in sizes.items()}


DEFENCE = {
    "table_defense-small-b-logits.json": SMALL,
    "table_defense-small-b-probabilities-3.json": (
        f"{SMALL} --answers probabilities --decimals 3 --methods mse student"
    ),
    "table_defense-small-b-labels.json": f"{SMALL} --answers labels --methods mse student zo-ds:wide",
    "table_defense-small-a-logits.json": f"{SMALL} --box a --methods none mse student fo-ds",
    "table_defense-few-b-logits.json": "--size few",
    "table_defense-labels-b-labels.json": "--size labels",
    "table_defense-shapes-cnn-logits.json": "--size shapes",
}
SAFEGUARD = {
    "denoised_smoothing_safeguard.json": SMALL,
    "denoised_smoothing_safeguard-once.json": "--size once --answers labels",
}

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "wake_rows",
            "docs/applications/wake_flow.md: batch and learning rate of methods with a budget of rows",
            "wake:rows",
            "half an hour",
            seeds=2,
            results={"wake_rows.json": SMALL},
        ),
        Benchmark(
            "wake_flow_demo",
            "README, docs/applications/wake_flow.md: the demo",
            "wake:table",
            "10 minutes",
            seeds=3,
            results={"wake_flow_demo.json": SMALL},
            named=True,
        ),
        Benchmark(
            "wake_flow_small",
            "DeepZero, figure 7, and docs/applications/wake_flow.md: the published grids",
            "wake:table",
            "an hour",
            ALL,
            3,
            results={"wake_flow_small.json": SMALL},
            named=True,
        ),
        Benchmark(
            "tangents",
            "README, docs/applications/boxes.md: learned tangents beside first order and no gradient",
            "tangents.comparison:main",
            "2 hours",
            ALL,
            3,
            results=_tangents(),
        ),
        Benchmark(
            "table_defense",
            "DeepZero, table of the black-box defence",
            "table_defense:main",
            "15 minutes",
            ("ci", "small", "few", "labels", "shapes", "paper"),
            3,
            DEFENCE,
        ),
        Benchmark(
            "safeguard",
            "docs/applications/denoised_smoothing.md: students of a forest and an SVM",
            "safeguard:main",
            "15 minutes",
            ("ci", "small", "once"),
            3,
            SAFEGUARD,
        ),
        _images(
            "image_classification_demo",
            "docs/applications/image_classification.md: the demo",
            "2 minutes",
        ),
        _images(
            "figure2_cge_vs_rge", "DeepZero, figure 2: CGE and RGE by network size", "20 minutes", seeds=3
        ),
        _images("table_query_number", "DeepZero, table of query numbers", "5 minutes", seeds=3),
        _images("table_smoothing_parameter", "DeepZero, table of smoothing parameters", "5 minutes", seeds=3),
        _images("figure3_baselines", "DeepZero, figure 3: methods without backpropagation", "9 minutes"),
        _images("figure4_sparsity", "DeepZero, figure 4: accuracy by sparsity", "12 minutes"),
        _images(
            "shapes_sparse",
            "DeepZero, figure 4 at .99, to the end of training",
            "2 hours",
            seeds=3,
        ),
        _images(
            "shapes_sparsity",
            "DeepZero, figure 4 on drawn shapes, exact gradients",
            "15 minutes",
            seeds=3,
        ),
        Benchmark(
            "query_speed",
            "docs/guide/evaluators.md: time of a query beside the published algorithm's",
            "query_speed.comparison:main",
            "half an hour",
            ("ci", "small", "figure5"),
            results={"query_speed.json": SMALL},
        ),
        Benchmark(
            "rows",
            "docs/applications/learned_tangents.md: replay",
            "rows.comparison:main",
            "3 hours",
            seeds=2,
            results=_rows(),
        ),
        Benchmark(
            "budget",
            "README, docs/howto/spend_rows.md: what `blackbox run --rows N` makes of N",
            "budget.comparison:main",
            "2 hours",
            seeds=2,
            results=_budget(),
        ),
        Benchmark(
            "meshes",
            "docs/howto/meshes.md: tangents on meshes beside exact adjoints",
            "meshes.comparison:main",
            "half an hour",
            results=_meshes(),
        ),
        Benchmark(
            "mosaic",
            "docs/applications/mosaic.md: Mosaic's tasks by methods that only call the solver",
            "mosaic.comparison:main",
            "2 hours",
            ("ci", "small", "terminal", "paper"),
            3,
            results=_mosaic(),
        ),
        Benchmark(
            "inputs",
            "docs/decisions/learning.md: models of tens to hundreds of inputs, and the one that is selected",
            "posterior.contest:main",
            "15 minutes",
            seeds=2,
            results={"posterior/inputs.json": SMALL},
        ),
        Benchmark(
            "twins",
            "docs/howto/twin.md: what a twin under a learned rest is worth in training",
            "rows.twins:main",
            "an hour",
            seeds=2,
            results={"twins.json": SMALL},
        ),
        Benchmark(
            "size",
            "docs/applications/learned_tangents.md: seconds and memory of tangents against cells",
            "size:main",
            "3 hours",
            results={"size/size.json": SMALL},
        ),
        Benchmark(
            "finite_difference",
            "docs/howto/choose_mu.md: differences that choose their steps, as gradients and as a check",
            "finite_difference:main",
            "5 minutes",
            results={"finite_difference.json": SMALL},
        ),
        Benchmark(
            "closure",
            "docs/applications/learned_tangents.md: a network inside a solver, with dither and without",
            "closure:main",
            "15 minutes",
            seeds=3,
            results={"closure.json": SMALL, "closure_uncorrected.json": f"{SMALL} --uncorrected"},
        ),
        Benchmark(
            "closed_loop",
            "docs/applications/learned_tangents.md: programs that are hard to learn through, and first order",
            "closed_loop:main",
            "an hour",
            seeds=3,
            results={"closed_loop.json": SMALL},
        ),
        Benchmark(
            "reinforcement",
            "docs/howto/reinforcement_learning.md: tangents, CMA-ES and PPO by steps of an environment",
            "reinforcement:main",
            "half an hour",
            seeds=3,
            results={"reinforcement.json": SMALL},
        ),
        Benchmark(
            "exchange",
            "docs/applications/learned_tangents.md, docs/howto/ftorch.md: what it costs that a program asks",
            "exchange:main",
            "a minute",
            results={"exchange.json": SMALL, "exchange_ftorch.json": f"{SMALL} --ftorch DIR"},
        ),
        Benchmark(
            "lorenz96",
            "examples/lorenz96: ways to train a closure, their errors and climate",
            "lorenz96:main",
            "40 minutes",
            seeds=3,
            results={"lorenz96.json": SMALL},
        ),
        Benchmark(
            "posterior",
            "docs/howto/posterior.md: effective samples of an exact posterior in a thousand rows, by sampler",
            "posterior.comparison:main",
            "an hour",
            seeds=2,
            results={"posterior/samplers.json": SMALL},
        ),
        Benchmark(
            "posterior_reference",
            "posterior: means and spreads by a long exact chain",
            "posterior.reference:main",
            "15 minutes",
            results={"posterior/reference.json": SMALL},
        ),
        Benchmark(
            "flux_force",
            "docs/howto/fit_a_field.md: runs until the statistics of a chaotic run are met, beside ensembles",
            "posterior.flux_force:main",
            "20 minutes",
            seeds=10,
            results={"posterior/flux_force.json": SMALL},
        ),
        Benchmark(
            "most_likely",
            "docs/howto/fit_a_field.md: the likeliest of 40 to 144 unknowns, with a twin and without",
            "posterior.most_likely:main",
            "half an hour",
            seeds=3,
            results={"posterior/most_likely.json": SMALL},
        ),
        Benchmark(
            "calibration",
            "docs/decisions/problems.md: ranks of what data were made of, among draws of zo.sample",
            "posterior.calibration:main",
            "15 minutes",
            results={"posterior/calibration.json": SMALL},
        ),
    )
}
