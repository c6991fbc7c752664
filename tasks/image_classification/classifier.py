"""A trained network of a run, to be used from Python: loaded by method and seed, it classifies images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.checks import nearest
from tasks.errors import CheckpointError, ConfigurationError
from tasks.image_classification import networks
from tasks.image_classification.config import Config
from tasks.image_classification.data.images import Normalisation
from tasks.image_classification.data.loading import CLASSES, IMAGE_SHAPES, NORMALISATIONS
from tasks.runs.checkpoint import Checkpoints
from tasks.runs.folder import Run

ROWS = 500  # images that go through the network together
TASK = "image-classification"


@dataclass(frozen=True)
class Classifier:
    """A network with what its images have to go through before it.

    Attributes:
        network: takes normalised images `(rows, channels, height, width)` to logits `(rows, classes)`; in
            evaluation mode, on the CPU.
        normalisation: of images of bytes, as in training.
        classes: their names, in the order of the logits.
        image_shape: channels, height and width in pixels.
    """

    network: nn.Module
    normalisation: Normalisation
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits `(rows, classes)` of images `(rows, channels, height, width)`, uint8.

        Raises:
            ConfigurationError: images of another shape or type.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.image_shape:
            raise ConfigurationError(
                f"Classifier, images: expected (rows, {', '.join(map(str, self.image_shape))}) uint8, 0 to "
                f"255, got {tuple(images.shape)} {str(images.dtype)[6:]}. Bytes are what it normalises."
            )
        parts = [self.network(self.normalisation(part)) for part in images.split(ROWS)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def predict(self, images: Tensor) -> Tensor:
        """The class of each image, `(rows,)` int64; `classes` has the names."""
        return self.logits(images).argmax(dim=1)


def load_classifier(folder: Path | str, method: str, seed: int = 0) -> Classifier:
    """The network that a method ended with, with the weights that validation chose.

        classifier = load_classifier("runs/image-classification-demo-...", "deepzero")
        names = [classifier.classes[label] for label in classifier.predict(images)]

    Nothing of the run is changed, and no data set is read. A network of the user's own is made by the
    function that the run was started with.

    Args:
        folder: of the run.
        method: one of the run's.
        seed: one of the run's.

    Raises:
        RunFolderError: the folder holds no run.
        ConfigurationError: it is of another task, or has no such method or seed.
        CheckpointError: the method's training is not finished.
    """
    run = Run.open(Path(folder))
    if run.task != TASK:
        raise ConfigurationError(f"{run.path}: expected a run of {TASK}, got one of {run.task}.")
    config = run.configuration(Config)
    if method not in config.methods:
        raise ConfigurationError(
            f"{run.path}: expected one of its methods ({', '.join(config.methods)}), got {method!r}. "
            f"{nearest(method, config.methods)}"
        )
    if seed not in run.seeds:
        raise ConfigurationError(f"{run.path}: expected one of its seeds {list(run.seeds)}, got {seed}.")
    classes, shape = CLASSES[config.dataset], IMAGE_SHAPES[config.dataset]
    network = networks.make(config.network, len(classes), shape, width=config.width, seed=seed)
    made = Classifier(network.eval(), NORMALISATIONS[config.dataset], classes, shape)
    if method == "none":
        return made
    content = Checkpoints(run.path, f"seed-{seed}/{method}").load()
    if content is None or not content["finished"]:
        came = "no checkpoint" if content is None else f"one of step {content['outcome']['step']}"
        raise CheckpointError(
            f"{run.path}, {method}, seed {seed}: expected the end of its training, got {came}. "
            f"Go on with: blackbox resume {run.path}"
        )
    try:
        network.load_state_dict(_weights(content["state"]))
    except RuntimeError as error:
        raise CheckpointError(
            f"{run.path}, {method}, seed {seed}: expected weights that fit {config.network}, got others: "
            f"{error}. Was the function that makes the network changed since?"
        ) from error
    return made


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """Those that were validated: the averaged ones where the run had some."""
    if "judged" not in state:
        return state["network"]
    inside = "module."
    return {
        name.removeprefix(inside): value for name, value in state["judged"].items() if name.startswith(inside)
    }
