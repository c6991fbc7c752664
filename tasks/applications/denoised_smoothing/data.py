"""The images: digits, shapes, a folder of pictures, HDF5 or `.npz`; and their division into three sets.

What is trained on is never what chooses a model, and what gives the certificate does neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import zo
from tasks.applications.denoised_smoothing.config import CNN, Config
from tasks.applications.denoised_smoothing.image_sources import InMemory, Source, open_source
from tasks.applications.images import digits
from tasks.applications.images.shapes_file import kept_shapes
from tasks.errors import DataError

SPLIT, DRAW, HELD_OUT = 101, 102, 103  # first words of the keys' paths for these draws
SHAPES, SHAPES_SETS = 21, (2000, 400, 600)  # seed, and images of the three sets
BOX = 800  # digits, of 1,797, that the embedded classifiers are trained on, and nothing else is


@dataclass(frozen=True)
class ImageSet:
    """Some images of a source.

    Attributes:
        source: the source of the images.
        index: their indices in the source, `(count,)`.
    """

    source: Source
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Tensor:
        """`(count,)` int64."""
        return torch.from_numpy(self.source.labels[self.index])

    def images(self, index: Tensor | None = None) -> Tensor:
        """`(rows, channels, height, width)` float32: those of these places, or all."""
        places = self.index if index is None else self.index[index.numpy()]
        return torch.from_numpy(self.source.take(places))

    def batch(self, seed: int, step: int, rows: int, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Images drawn with replacement: noisy ones, clean ones, and their places in the set."""
        generator = zo.estimators.Key(seed, step).generator(DRAW)
        index = torch.randint(len(self), (rows,), generator=generator)
        clean = self.images(index)
        return clean + sigma * torch.randn(clean.shape, generator=generator), clean, index

    def noisy(self, rows: int, seed: int, sigma: float) -> tuple[Tensor, Tensor]:
        """`rows` noisy images and their labels, the same at every call; beyond the last it begins anew."""
        index = torch.arange(rows) % len(self)
        clean = self.images(index)
        noise = torch.randn(clean.shape, generator=zo.estimators.Key(seed).generator(HELD_OUT))
        return clean + sigma * noise, self.labels[index]


@dataclass(frozen=True)
class Sets:
    """The three sets of images, and their source.

    Attributes:
        train, validation, test: the sets.
        name: the name of the source, for the report.
        shape: the shape of an image, `(channels, height, width)`.
        classes: how many labels there are.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    name: str
    shape: tuple[int, int, int]
    classes: int


def load(config: Config, folder: Path | None = None) -> Sets:
    """The images that the configuration names.

    Args:
        config: The run's settings.
        folder: The folder in which drawn images are kept; None to keep none.

    Raises:
        DataError: Images are outside [0, 1], or of a wrong shape, or of several; or there is no such file.
            Or labels are no classes, or there are fewer than two classes.
        MissingExtraError: scikit-learn is not installed, for the digits.
    """
    if config.images is None and config.box == CNN:
        pixels, labels = kept_shapes(sum(SHAPES_SETS), SHAPES, folder)
        source: Source = InMemory("shapes", pixels.numpy(), labels.numpy())
        sets = _divided(np.arange(len(labels)), SHAPES_SETS)  # drawn in no order
    elif config.images is None:
        source = InMemory("the digits", *digits.load())
        order = _order(len(source.labels))
        sets = _divided(order[BOX:], (500, 197, 300))
    else:
        source, parts = open_source(config.images, config.image_size)
        sets = parts or _divided(_order(len(source.labels)), config.split)
    smallest = min(len(part) for part in sets)
    if smallest < 1:
        raise DataError(
            f"{config.images}: expected images to train on, to choose by and to certify, got "
            f"{', '.join(str(len(part)) for part in sets)}. Give more images, or another --split."
        )
    shape = source.take(sets[0][:1]).shape[1:]
    classes = int(source.labels.max()) + 1
    if classes < 2:
        raise DataError(f"{config.images}: expected at least two classes, got one. Nothing is to be told.")
    shipped = "shapes" if config.box == CNN else "scikit-learn's digits"
    named = shipped if config.images is None else Path(config.images).name
    train, validation, test = (ImageSet(source, part) for part in sets)
    return Sets(train, validation, test, named, (shape[0], shape[1], shape[2]), classes)


def digits_of_the_box() -> tuple[np.ndarray, np.ndarray]:
    """Return the embedded classifiers' training data: images `(800, 64)` and labels."""
    images, labels = digits.load()
    places = _order(len(labels))[:BOX]
    return images[places].reshape(BOX, -1), labels[places]


def _order(count: int) -> np.ndarray:
    """The order of images; it depends on their number alone, not on a run's seed: the sets stay apart."""
    return torch.randperm(count, generator=zo.estimators.Key(0).generator(SPLIT)).numpy()


def _divided(order: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
    ends = np.cumsum(shares) / sum(shares) * len(order)
    first, second = (round(float(end)) for end in ends[:2])
    return [order[:first], order[first:second], order[second:]]
