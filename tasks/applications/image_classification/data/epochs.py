"""Training batches by optimiser step: shuffled and augmented anew every epoch, the same after a resume.

Images are padded, cropped and flipped as whole batches of uint8, on the device that holds them. Source of the
recipe for CIFAR: He et al. 2016, section 4.2: 4 pixels of padding on each side, a crop of the image's own
size, a horizontal flip in half of the cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.applications.image_classification.data.image_data import Images, Normalisation
from zo.estimators import Key

_ORDER, _AUGMENTATION = 0, 1  # paths of the two generators of an epoch


class Epochs:
    """Batches of equal size, each image at most once an epoch.

    Order and augmentation of an epoch depend on (seed, epoch) alone and are drawn on the CPU, so that any
    step can be asked for at any time, on any device. Images that do not fill a batch are left out; these
    differ in every epoch.

    Args:
        part: the training images, on the device where they stay.
        normalisation: the normalisation of images for the network.
        augmentation: the random changes of images.
        size: the number of rows of a batch, at most as many as the part has.
    """

    def __init__(
        self, part: Images, normalisation: Normalisation, augmentation: Augmentation, size: int
    ) -> None:
        self.part, self.normalisation, self.augmentation = part, normalisation, augmentation
        self.size = size
        self._last_epoch: tuple[Key, Tensor, Tensor] | None = None  # of an epoch: order, draws

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.part) // self.size

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Images `(size, channels, height, width)` float32 and labels `(size,)` of a seed's step, from 0."""
        epoch, number = divmod(step, self.steps)
        order, draws = self._of_epoch(Key(seed, epoch))
        place = slice(number * self.size, (number + 1) * self.size)
        which = order[place]
        pixels = self.augmentation.apply(self.part.pixels[which], draws[place])
        return self.normalisation(pixels), self.part.labels[which]

    def _of_epoch(self, key: Key) -> tuple[Tensor, Tensor]:
        if self._last_epoch is None or self._last_epoch[0] != key:
            device = self.part.labels.device
            order = torch.randperm(len(self.part), generator=key.generator(_ORDER))
            draws = self.augmentation.draw(len(self.part), key.generator(_AUGMENTATION))
            self._last_epoch = key, order.to(device), draws.to(device)
        return self._last_epoch[1], self._last_epoch[2]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        pad: at least 0 pixels of zero on each side before an image of the old size is cut out; 0 for none.
        flip: left and right are exchanged in half of the images.
    """

    pad: int = 4
    flip: bool = True

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draws `(rows, 3)`, int64, on the CPU: shift down, shift right (0 to 2 pad), and flipped or not."""
        shifts = torch.randint(2 * self.pad + 1, (rows, 2), generator=generator)
        flips = torch.randint(2, (rows, 1), generator=generator)
        return torch.cat([shifts, flips if self.flip else torch.zeros_like(flips)], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augmented images.

        Args:
            images: `(rows, channels, height, width)`, uint8.
            draws: `(rows, 3)` from `draw`, on the images' device.

        Returns:
            New images of the same shape and type.
        """
        height, width = images.shape[2:]
        down, right, flipped = (draws[:, column, None] for column in range(3))
        column = torch.arange(width, device=images.device)
        column = torch.where(flipped.bool(), width - 1 - column, column) + right
        row = torch.arange(height, device=images.device) + down
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        which = torch.arange(len(images), device=images.device)[:, None, None]
        # the indices' axes come first: (rows, height, width, channels), as channels-last memory has it
        return padded[which, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


NO_AUGMENTATION = Augmentation(pad=0, flip=False)
CIFAR_AUGMENTATION = Augmentation()
