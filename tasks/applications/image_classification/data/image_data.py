"""Images with their labels as bytes on a device, and the numbers that a network is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.errors import ConfigurationError
from zo.estimators import Key


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel over the pixels of the training images, of 0 to 1."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Convert images for a network: `(rows, channels, height, width)` uint8 to float32, channels last."""
        mean, deviation = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.deviation)
        )
        # one multiplication and one addition; in channels-last memory convolutions are faster
        scaled = images.contiguous(memory_format=torch.channels_last).float()
        return scaled.mul_(1 / (255 * deviation)).sub_(mean / deviation)


@dataclass(frozen=True)
class Images:
    """A part of a data set.

    Attributes:
        pixels: `(rows, channels, height, width)`, uint8.
        labels: `(rows,)`, int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Images:
        """The same on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def rows(self, which: Tensor) -> Images:
        """Some of them, by number `(rows,)`."""
        return Images(self.pixels[which], self.labels[which])


@dataclass(frozen=True)
class ImageData:
    """A data set, split.

    Attributes:
        train: images to learn from.
        validation: images that were held out of the training images; models are chosen on them.
        test: images for the last line.
        normalisation: the normalisation of all three.
    """

    train: Images
    validation: Images
    test: Images
    normalisation: Normalisation


def hold_out(part: Images, *sizes: int, seed: int) -> list[Images]:
    """Disjoint parts of the given sizes, drawn at random.

    Args:
        part: the images to divide.
        sizes: the number of images in each part; the rest is in none.
        seed: the seed of the draw, >= 0.

    Raises:
        ConfigurationError: a size is below 1, or the sum of sizes is too large.
    """
    if min(sizes) < 1 or sum(sizes) > len(part):
        raise ConfigurationError(
            f"expected parts of at least 1 image, {len(part):,} together at most, got "
            f"{' + '.join(f'{size:,}' for size in sizes)}. Ask for fewer images."
        )
    order = torch.randperm(len(part), generator=Key(seed).generator(0))
    return [part.rows(which) for which in order[: sum(sizes)].split(list(sizes))]
