"""Rows held out at random, the same for the same seed."""

from __future__ import annotations

import torch

from tasks.errors import ConfigurationError
from tasks.image_classification.data.images import Images
from zo.estimators import Key


def hold_out(part: Images, *sizes: int, seed: int) -> list[Images]:
    """Disjoint parts of the given sizes, drawn at random.

    Args:
        part: what is divided.
        sizes: images of each part; what is left over is in none.
        seed: of the draw, >= 0.

    Raises:
        ConfigurationError: a size is below 1, or they are too much together.
    """
    if min(sizes) < 1 or sum(sizes) > len(part):
        raise ConfigurationError(
            f"expected parts of at least 1 image, {len(part):,} together at most, got "
            f"{' + '.join(f'{size:,}' for size in sizes)}. Ask for fewer images."
        )
    order = torch.randperm(len(part), generator=Key(seed).generator(0))
    return [part.rows(which) for which in order[: sum(sizes)].split(list(sizes))]
