"""A data set by its name, split into training, validation and test images on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from blackbox.checks import nearest
from tasks.applications.image_classification.data import cifar
from tasks.applications.image_classification.data.epochs import (
    CIFAR_AUGMENTATION,
    NO_AUGMENTATION,
    Augmentation,
)
from tasks.applications.image_classification.data.image_data import ImageData, Images, Normalisation, hold_out
from tasks.applications.images import digits
from tasks.applications.images.shapes import NAMES as OUTLINES
from tasks.applications.images.shapes_file import kept_shapes
from tasks.errors import ConfigurationError

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

CIFAR100_CLASSES = tuple(f"class {label}" for label in range(100))
CLASSES: dict[str, tuple[str, ...]] = {
    "cifar10": CIFAR10_CLASSES,
    "cifar100": CIFAR100_CLASSES,
    "digits": tuple(map(str, range(10))),
    "shapes": OUTLINES,
}
IMAGE_SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "digits": (1, 8, 8), "shapes": (3, 32, 32)}

# Mean and standard deviation of each channel over all pixels of the data set's training images, of 0 to 1.
# For CIFAR these are the figures in common use; those of digits are over all images, those of shapes over
# 6,000, and tests compute these two anew.
NORMALISATIONS = {
    "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "digits": Normalisation((0.3053,), (0.3760,)),
    "shapes": Normalisation((0.431, 0.430, 0.432), (0.217, 0.216, 0.217)),
}

AUGMENTATIONS: dict[str, Augmentation] = {
    "cifar10": CIFAR_AUGMENTATION,
    "cifar100": CIFAR_AUGMENTATION,
    "digits": NO_AUGMENTATION,  # a flipped digit is none, and 8 pixels leave no room for shifts
    "shapes": CIFAR_AUGMENTATION,
}

# training images that are held out for validation, and the number of test images, unless others are asked for
_VALIDATION = {"cifar10": 5000, "cifar100": 5000, "digits": 297, "shapes": 2000}
_TEST = {"cifar10": 10_000, "cifar100": 10_000, "digits": 300, "shapes": 5000}
TRAIN = {"cifar10": 45_000, "cifar100": 45_000, "digits": 1200, "shapes": 20_000}
_TRAIN_SEED, _TEST_SEED = 0, 1  # of `shapes`: the data set is the same for all runs

NAMES = tuple(NORMALISATIONS)


def load(
    name: str,
    folder: Path,
    *,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ImageData:
    """A data set.

    Validation images are drawn from the training images of the data set, with `seed`, and so are the training
    images where fewer are asked for than there are. Test images are the data set's own (digits has none: they
    are drawn from all, too).

    Args:
        name: one of `NAMES`.
        folder: the folder of CIFAR's files, and of many `shapes`; digits need none.
        train: the number of training images; None for 45,000 of CIFAR, 1,200 digits, 20,000 shapes.
        validation: the number of validation images; None for 5,000, 297, 2,000.
        test: the number of test images; None for 10,000, 300, 5,000.
        seed: the seed of the split, >= 0; the same for all runs that are compared.
        device: the device where the images stay.

    Raises:
        ConfigurationError: there is no such data set, or it has fewer images.
        DataError: a file of CIFAR is missing or not what it should be.
        MissingExtraError: digits come with scikit-learn, which is not installed.
    """
    if name not in NAMES:
        raise ConfigurationError(f"{name!r}: expected the name of a data set. {nearest(name, NAMES)}")
    train = TRAIN[name] if train is None else train
    validation = _VALIDATION[name] if validation is None else validation
    test = _TEST[name] if test is None else test
    if name == "digits":
        pixels, labels = digits.load()
        every = Images(torch.from_numpy(pixels).mul(255).round().to(torch.uint8), torch.from_numpy(labels))
        parts = hold_out(every, train, validation, test, seed=seed)
    else:
        if name == "shapes":
            pool = Images(*kept_shapes(train + validation, _TRAIN_SEED, folder))
            held_out = Images(*kept_shapes(test, _TEST_SEED, folder))
        else:
            pool, held_out = cifar.read(cifar.SOURCES[name], folder)
        if not 1 <= test <= len(held_out):
            raise ConfigurationError(
                f"expected 1 to {len(held_out):,} test images, got {test:,}. Ask for fewer."
            )
        parts = [
            *hold_out(pool, train, validation, seed=seed),
            Images(held_out.pixels[:test], held_out.labels[:test]),
        ]
    first, second, third = (part.to(device) for part in parts)
    return ImageData(first, second, third, NORMALISATIONS[name])
