"""The sizes at which wake-flow benchmarks run, and what their contenders share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tasks.methods import Setup
from tasks.progress import make_progress
from tasks.runs.folder import Run
from tasks.wake_flow.config import PRESETS, Config
from tasks.wake_flow.problem import WakeFlow
from tasks.work import prepare, setup_of

CI = replace(
    PRESETS["demo"],
    width=8,
    reference_width=16,
    warm_up=200,
    frames=60,
    train_reynolds=(120.0, 480.0),
    validation_reynolds=(200.0,),
    test_reynolds=(170.0, 340.0),
    unroll=4,
    non_steps=40,
    fo_steps=10,
    zo_steps=10,
    large_steps=10,
    coordinates=24,
    input_directions=24,
    directions=24,
    horizon=40,
    test_starts=2,
    validation_starts=1,
    validate_every=10,
)
"""The smallest at which every part still runs: whether it works, not how well."""

SIZES: dict[str, Config] = {"ci": CI, **PRESETS, "demo": replace(PRESETS["demo"], coordinates=96)}
"""The results that are kept are of a demo of twice the coordinates."""


@contextmanager
def setups(config: Config, seeds: tuple[int, ...], folder: Path) -> Iterator[list[Setup]]:
    """What methods of each seed are given, with a run that is gone afterwards.

    Args:
        config: of the run.
        seeds: of the run.
        folder: where reference flows are kept.
    """
    torch.set_num_threads(config.threads)
    problem, progress = WakeFlow(config, folder=folder), make_progress()
    problem.progress = progress
    prepare(problem)
    with TemporaryDirectory() as place:
        run = Run.create(Path(place), "wake-flow", "benchmark", config, seeds)
        yield [setup_of(problem, run, "NON", seed, progress, {}) for seed in seeds]
