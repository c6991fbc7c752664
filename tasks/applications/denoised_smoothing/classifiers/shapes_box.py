"""The classifier of `shapes` that ships: a small convolutional network on 32 x 32 images in colour.

It is trained without noise beyond that of the images, so that it is right for about nine clean images in ten
and for about half of them at sigma .25.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blackbox import ArraySpec
from blackbox.adapters import TorchModule
from tasks.applications.images.shapes import NAMES, SIDE
from tasks.applications.images.shapes_file import kept_shapes, version
from tasks.errors import CheckpointError
from tasks.folder import checkpoint
from tasks.folder.pace import Pace

SEED = 20  # of the images that it is trained on, and nothing else is
IMAGES, STEPS, BATCH, LEARNING_RATE = 12_000, 800, 128, 5e-3
WIDTHS = (3, 16, 32, 64)  # channels, halving height and width each time


def convolutional(images: int = IMAGES, steps: int = STEPS, folder: Path | None = None) -> TorchModule:
    """The classifier, trained where it is not at hand: some 20 seconds of one core.

    Args:
        images: the number of images to train on.
        steps: the steps of Adam.
        folder: the folder for images and classifier, also a half-trained one; None to train it anew.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # sums of another number of threads round otherwise, and the box would be another
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            network = _network()
            _train(network, images, steps, folder)
    finally:
        torch.set_num_threads(threads)
    image, logits = ArraySpec("image", (3, SIDE, SIDE)), ArraySpec("logits", (len(NAMES),))
    return TorchModule(network, [image], [logits], max_rows=1000)


def _network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    side = SIDE // 2 ** (len(WIDTHS) - 1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * side**2, len(NAMES)))


def _train(network: nn.Module, images: int, steps: int, folder: Path | None) -> None:
    """Train it, from where an earlier process has left it."""
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    path = None if folder is None else folder / f"shapes-classifier-{_version(images, steps)}.pt"
    state = {"network": network, "optimizer": optimizer, "schedule": schedule}
    steps_done, pace = _left(path, state), Pace()
    pixels, labels = torch.empty(0), torch.empty(0)
    if steps_done < steps:
        pixels, labels = kept_shapes(images, SEED, folder)
    with torch.enable_grad():
        for step in range(steps_done, steps):
            index = torch.randint(len(labels), (BATCH,))
            loss = functional.cross_entropy(network(pixels[index].float() / 255), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if path is not None and (pace.due or step + 1 == steps):
                started = pace.now()
                content = {name: part.state_dict() for name, part in state.items()}
                # of the schedule's plain values alone: some versions of torch have a function among them
                content["schedule"] = {k: v for k, v in content["schedule"].items() if k in _OF_SCHEDULE}
                with suppress(OSError):  # a folder that cannot be written keeps none
                    path.parent.mkdir(parents=True, exist_ok=True)
                    checkpoint.save(path, {"steps": step + 1, "random": torch.get_rng_state(), **content})
                pace.wrote(started)


_OF_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")


def _left(path: Path | None, state: Mapping[str, Any]) -> int:
    """Put back what an earlier process has written; the steps that were done."""
    try:
        content = {} if path is None or not path.exists() else checkpoint.load(path)
    except CheckpointError:  # damaged: it is trained anew
        return 0
    if not content:
        return 0
    for name, part in state.items():
        part.load_state_dict(content[name])
    torch.set_rng_state(content["random"])
    return content["steps"]


def _version(images: int, steps: int) -> str:
    """A hash of all that the weights depend on."""
    code = Path(__file__).read_bytes()
    return sha256(f"{version()} {images} {steps}".encode() + code).hexdigest()[:12]
