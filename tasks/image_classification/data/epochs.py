"""Training batches by optimiser step: shuffled and augmented anew every epoch, the same after a resume."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.errors import ConfigurationError
from tasks.image_classification.data.augmentation import Augmentation
from tasks.image_classification.data.images import Images, Normalisation
from zo.estimators import Key

_ORDER, _AUGMENTATION = 0, 1  # paths of the two generators of an epoch


class Epochs:
    """Batches of equal size, each image at most once an epoch.

    Order and augmentation of an epoch hang on (seed, epoch) alone and are drawn on the CPU, so that any step
    can be asked for at any time, on any device. What does not fill a batch is left out; another few every
    epoch.

    Args:
        part: the training images, on the device where they stay.
        normalisation: what the network sees.
        augmentation: what is done at random.
        batch: rows of a batch.
        seed: of order and augmentation, >= 0.

    Raises:
        ConfigurationError: the batch is larger than the part.
    """

    def __init__(
        self, part: Images, normalisation: Normalisation, augmentation: Augmentation, *, batch: int, seed: int
    ) -> None:
        if not 1 <= batch <= len(part):
            raise ConfigurationError(
                f"expected a batch of 1 to {len(part)} rows, as many as there are training images, got "
                f"{batch}. Take smaller batches or more images."
            )
        self.part, self.normalisation, self.augmentation = part, normalisation, augmentation
        self.size, self.seed = batch, seed
        self._drawn: tuple[int, Tensor, Tensor] | None = None  # epoch, order, draws

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.part) // self.size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images `(batch, channels, height, width)` float32 and labels `(batch,)` of a step, from 0."""
        epoch, number = divmod(step, self.steps)
        order, draws = self._of_epoch(epoch)
        place = slice(number * self.size, (number + 1) * self.size)
        which = order[place]
        pixels = self.augmentation.apply(self.part.pixels[which], draws[place])
        return self.normalisation(pixels), self.part.labels[which]

    def _of_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        if self._drawn is None or self._drawn[0] != epoch:
            key, device = Key(self.seed, epoch), self.part.labels.device
            order = torch.randperm(len(self.part), generator=key.generator(_ORDER))
            draws = self.augmentation.draw(len(self.part), key.generator(_AUGMENTATION))
            self._drawn = epoch, order.to(device), draws.to(device)
        return self._drawn[1], self._drawn[2]
