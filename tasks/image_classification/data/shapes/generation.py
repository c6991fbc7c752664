"""Any number of images, in blocks that are drawn by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.errors import ConfigurationError
from tasks.image_classification.data.shapes.drawing import draw
from tasks.image_classification.data.shapes.factors import draw_factors, draw_labels
from tasks.image_classification.data.shapes.outlines import NAMES
from zo.estimators import Key

SIDE = 32
BLOCK = 256  # images drawn together: planes of a megabyte stay in the cache


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of a seed's endless sequence.

    Image i hangs on (seed, i) alone, not on `count`: blocks are drawn whole, each from its own generators.
    Between machines or versions of torch a pixel may differ by one, since sines are rounded otherwise.

    Args:
        count: number of images, at least 1.
        seed: of the sequence, >= 0; other seeds give other images of the same distribution.

    Returns:
        Images `(count, 3, 32, 32)`, uint8, and labels `(count,)`, int64, 0 to 9 as in `NAMES`.

    Raises:
        ConfigurationError: there is nothing to draw.
    """
    if count < 1:
        raise ConfigurationError(f"shapes: expected at least 1 image, got {count}. Ask for more.")
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for block, start in enumerate(range(0, count, BLOCK)):
        key = Key(seed, block)
        drawn = draw_labels(key, BLOCK, len(NAMES))
        pixels = draw(drawn, draw_factors(key, BLOCK, SIDE), key, SIDE)
        kept = min(BLOCK, count - start)
        images[start : start + kept], labels[start : start + kept] = pixels[:kept], drawn[:kept]
    return images, labels
