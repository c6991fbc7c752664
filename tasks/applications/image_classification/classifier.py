"""A trained network of a run, to be used from Python: loaded by method and seed, it classifies images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.applications.image_classification.data.image_data import Normalisation
from tasks.applications.image_classification.data.loading import CLASSES, IMAGE_SHAPES, NORMALISATIONS
from tasks.errors import ConfigurationError
from tasks.running.finished import load

ROWS = 500  # images that go through the network together


@dataclass(frozen=True)
class Classifier:
    """A network with the normalisation of its images.

    Attributes:
        network: a network from normalised images `(rows, channels, height, width)` to logits
            `(rows, classes)`; in evaluation mode, on the CPU.
        normalisation: the normalisation of images of bytes, as in training.
        classes: the names of the classes, in the order of the logits.
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
        images = torch.as_tensor(images)  # arrays of NumPy, too
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


def load_classifier(folder: Path | str, method: str, seed: int = 0, *, trust: bool = False) -> Classifier:
    """The network of a method of a finished run, with the weights that validation chose.

        classifier = load_classifier("runs/image-classification-demo-...", "deepzero")
        names = [classifier.classes[label] for label in classifier.predict(images)]

    Nothing of the run is changed, and no data set is read. A network of the user's own is made by the
    function that the run was started with.

    Args:
        folder: the folder of the run.
        method: a method of the run.
        seed: a seed of the run.
        trust: whether to execute that function although the run came from elsewhere.

    Raises:
        RunFolderError: the folder holds no run, or the run is not finished.
        ConfigurationError: the run is of another task, or has no such method or seed.
        TrustError: the run is from elsewhere, and its network is a function that is not trusted.
        CheckpointError: the run's settings were changed.
    """
    from tasks.applications.image_classification.problem import ImageClassification

    run = load(folder, trust=trust)
    problem = run.problem
    if problem is None and run.untrusted is not None:
        raise run.untrusted
    if not isinstance(problem, ImageClassification):
        raise ConfigurationError(
            f"{run.path}: expected a run of image-classification, got one of {run.result.task}."
        )
    problem.config = replace(problem.config, device="cpu")
    dataset = problem.config.dataset
    network = run.network(method, seed).eval()
    return Classifier(network, NORMALISATIONS[dataset], CLASSES[dataset], IMAGE_SHAPES[dataset])
