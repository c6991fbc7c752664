"""Image classification at the smallest size that still has every part."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

import tasks
from tasks import Progress, Trained
from tasks.applications.image_classification import ImageClassification
from tasks.applications.image_classification.config import ZerothOrder
from tasks.applications.image_classification.data import ImageData, Images, Normalisation
from tasks.configuration import flat, to_dict
from tasks.methods import Setup
from tasks.methods import by_name as methods
from tasks.training.setup import setup_of
from tests.tasks.made_runs import begun_run

Config = ImageClassification.Config

SETTINGS = {
    "methods": ("none", *ImageClassification.methods),
    "train_images": 32,
    "validation_images": 20,
    "test_images": 20,
    "network": "simple-3700",
    "width": 3,
    "steps": 6,
    "batch": 16,
    "warm_up": 1 / 6,
    "learning_rate": 0.05,
    "noisy_learning_rate": 0.01,
    "sparsity": 0.8,
    "pruning_directions": 4,
    "pruning_images": 16,
    "validate_every": 2,
    "zeroth_order": ZerothOrder(coordinates=9, directions=5),
    "evaluator": "stacked",
}


def small(**changes) -> tasks.Config:
    return Config(**(SETTINGS | changes))


def words(*more: str, **changes) -> list[str]:
    """The command line of a run with these settings."""
    line = ["run", "image-classification", "--preset", "demo"]
    changed = {**SETTINGS, **changes}
    for path, value in flat(to_dict(Config(**changed))).items():
        setting, _, inner = path.partition(".")
        if setting not in changed or value is None:
            continue
        name = inner or setting
        if isinstance(value, bool):
            line += [f"--{name.replace('_', '-')}"] if value else []
            continue
        values = value if isinstance(value, list) else [value]
        line += [f"--{name.replace('_', '-')}", *map(str, values)]
    return [*line, *more]


def striped(rows: int, seed: int = 0, side: int = 8, classes: int = 4) -> Images:
    """Grey images whose class is the number of a bright row, among noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    pixels = torch.randint(120, (rows, 1, side, side), generator=generator)
    pixels[torch.arange(rows), 0, 2 * labels] += 120
    return Images(pixels.to(torch.uint8), labels)


class Striped(ImageClassification):
    """Striped images in the place of a data set; of the digits' ten classes four are there."""

    train = 64

    @cached_property
    def images(self) -> ImageData:
        parts = (striped(self.train, 0), striped(24, 1), striped(24, 2))
        return ImageData(*parts, Normalisation((0.3,), (0.25,)))


def made_setup(
    folder: Path, method: str = "fo", kind: type[ImageClassification] = Striped, seed: int = 0, **changes
) -> Setup:
    """What a method trains with, on striped images in three passes; progress is not shown."""
    own = {"train_images": kind.train} if issubclass(kind, Striped) else {}
    settings = SETTINGS | {"steps": 12, "warm_up": 1 / 6, "methods": (method,)} | own | changes
    problem = kind(kind.Config(**settings))
    run = begun_run(folder, problem.name(), "demo", problem.config, [seed])
    return setup_of(problem, run, method, seed, Progress(), {})


def train(its: Setup) -> Trained:
    return methods.methods_named(its.problem, [its.name])[its.name].train(its)


def flat_grad(network: torch.nn.Module) -> torch.Tensor:
    """All of `.grad` as one vector, which is cleared."""
    found = torch.cat([tensor.grad.reshape(-1) for tensor in network.parameters()])
    network.zero_grad()
    return found.clone()


def backprop(network: torch.nn.Module, objective, batch) -> torch.Tensor:
    """Autograd's gradient, flat; running statistics are left as they were."""
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.zero_grad()
    objective(network, batch).mean().backward()
    for name, buffer in network.named_buffers():
        buffer.copy_(kept[name])
    return flat_grad(network)
