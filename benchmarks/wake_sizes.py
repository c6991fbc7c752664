"""The sizes at which wake-flow benchmarks run, and what their contenders share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from simulators.wake_flow.box import WakeFlow
from tasks.progress import make_progress
from tasks.runs.folder import Run
from tasks.wake_flow import data
from tasks.wake_flow.config import PRESETS, Config
from tasks.wake_flow.trainer import Trainer

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
    chain_queries=24,
    directions=24,
    horizon=40,
    test_starts=2,
    validation_starts=1,
    validate_every=10,
)
"""The smallest at which every part still runs: whether it works, not how well."""

SIZES: dict[str, Config] = {"ci": CI, **PRESETS}


@contextmanager
def trainers(config: Config, seeds: tuple[int, ...], folder: Path) -> Iterator[list[Trainer]]:
    """A trainer for each seed, with a run that is gone afterwards.

    Args:
        config: of the run.
        seeds: of the run.
        folder: where reference flows are kept.
    """
    torch.set_num_threads(config.threads)
    progress = make_progress()
    solver = WakeFlow(config.width, dt=config.dt, failures="keep")
    flows = data.load(config, folder, progress.counter("reference flows (PhiFlow)"))
    pairs = data.pairs(flows.train, solver)
    scales = data.scales(flows.train, pairs)
    with TemporaryDirectory() as place:
        run = Run.create(Path(place), "wake-flow", "benchmark", config, seeds)
        yield [Trainer(run, config, flows, pairs, scales, solver, seed, progress) for seed in seeds]
