"""Denoised smoothing at the smallest size that still has every part: 6 x 6 images, a torch classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tasks
import tests.tasks.applications.denoised_smoothing.boxes as boxes
from tasks import Progress, Run, Trained
from tasks.applications.denoised_smoothing import DenoisedSmoothing
from tasks.applications.denoised_smoothing.config import ZerothOrder
from tasks.applications.denoised_smoothing.problem import METHODS
from tasks.methods import Setup
from tasks.rows.run_ledger import RunLedger
from tasks.training.setup import setup_of
from tests.tasks.made_runs import begun_run

Config = DenoisedSmoothing.Config

CLASSES, SIDE = 3, 6
BOX = f"{boxes.__name__}:blobs"
TINY = {
    "box": BOX,
    "depth": 3,
    "width": 3,
    "steps": 30,
    "batch": 8,
    "queries": 900,
    "evaluator": "loop",  # whose check costs no queries
    "fo_queries": 400,
    "mu_queries": 140,
    "zo_batch": 4,
    "modes": 3,
    "latent": 3,
    "latent_widths": (8,),
    "ratio_directions": 2,
    "deepzero_batch": 2,
    "student_steps": 20,
    "student_width": 16,
    "student_batch": 16,
    "student_first_steps": 30,
    "validation_images": 20,
    "validations": 2,
    "train_images": 40,
    "certify_images": 4,
    "n": 100,
    "n0": 20,
    "zeroth_order": ZerothOrder(input_directions=4, coordinates=6),
}


def images(path: Path, count: int = 120, channels: int = 1) -> Path:
    """An `.npz` of images with one bright blob, whose place is the class."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, count)
    made = 0.1 * generator.random((count, channels, SIDE, SIDE))
    for image, label in zip(made, labels, strict=True):
        image[:, 2 * label : 2 * label + 2, 1:5] += 0.2
    np.savez(path, images=made.astype(np.float32), labels=labels)
    return path


def config(folder: Path, **settings: object) -> tasks.Config:
    """The tiny settings, with images in `folder`."""
    path = folder / "images.npz"
    if not path.exists():
        images(path)
    return Config(**{**TINY, "images": path, **settings})  # pyright: ignore


def problem(folder: Path, **settings: object) -> DenoisedSmoothing:
    """The problem with the tiny settings, as a script makes it."""
    return DenoisedSmoothing(config(folder, **settings))


def setup(
    made: DenoisedSmoothing, folder: Path, name: str, trained: dict[str, Trained], seed: int = 0
) -> Setup:
    """What a method is given, in a run of `folder`."""
    runs = folder / "runs"
    if not runs.exists():
        begun_run(runs, made.name(), "demo", made.config, (0,))
    (path,) = runs.iterdir()
    if made.run_folder is None:
        made.begin(path)
        RunLedger(None).bound(made)
    return setup_of(made, Run.open(path), name, 0, Progress(), trained)


def train(
    made: DenoisedSmoothing, folder: Path, *names: str, before: dict[str, Trained] | None = None
) -> dict[str, Trained]:
    """Methods one after another, each from what those before have trained."""
    trained = dict(before or {})
    for name in names:
        method = METHODS.get(name) or made.variant(name)
        assert method is not None
        trained[name] = method.train(setup(made, folder, name, trained))
    return trained


def words(folder: Path, *more: str, **settings: object) -> list[str]:
    """The command line of a run with these settings."""
    from tasks.configuration import flat, to_dict

    line = ["run", "denoised-smoothing", "--preset", "demo", "--runs", str(folder / "runs")]
    usual = flat(to_dict(DenoisedSmoothing.presets["demo"]))
    for name, value in flat(to_dict(config(folder, **settings))).items():
        flag = f"--{name.rpartition('.')[2].replace('_', '-')}"
        if isinstance(value, bool):
            line += [] if value == usual[name] else [flag if value else f"--no-{flag[2:]}"]
        elif value is None:
            continue
        elif isinstance(value, Sequence) and not isinstance(value, str):
            line += [flag, *map(str, value)] if value else []
        else:
            line += [flag, str(value)]
    return [*line, *more]


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A smooth classifier of such images."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers = nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES)
        return nn.Sequential(nn.Flatten(), *layers).to(dtype)


def rows(count: int, seed: int = 1) -> Tensor:
    """Images away from the ends of [0, 1], where a clamp has no kink."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
