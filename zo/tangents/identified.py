"""Whether values show a derivative: inputs that the rows shown so far determine from the other inputs.

Where an action is a function of the observation, as in closed loop, pairs (observation, action) lie on a
manifold: a model may fit all values and have any derivative by the action. That is closed-loop
identifiability (Söderström, Gustavsson and Ljung, 1976). So is an input that is the same in all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zo.tangents.models.kernel import leave_one_out

FEW = 32  # numbers of an input of which each is looked at; of a larger one, as a field, all together
DETERMINED = (
    0.05  # of an input's variance: what the other inputs leave unexplained of one that they determine
)
SKETCH = 64  # numbers to which a large input is brought down, to be explained by


def determined(inputs: Sequence[Tensor], place: int, excited: Sequence[int] = ()) -> float:
    """The share of an input's variance that the other inputs leave unexplained, row by row left out.

    Args:
        inputs: what the box was asked, by input, `(rows, size)` each, as the objective has it: without dither.
        place: the input.
        excited: inputs that are dithered, which explain nothing.

    Returns:
        0 where the others determine it, or where it is the same in all rows; 1 where they say nothing of it.
        0 too of few numbers with so few rows that a plane through them explains all; 1 of many.
    """
    wanted = inputs[place].double()
    wanted = wanted[:, varied(wanted)]
    size = inputs[place].shape[1]
    if not wanted.shape[1] or (size <= FEW and wanted.shape[1] < size):
        return 0.0
    others = [x.double() for number, x in enumerate(inputs) if number != place and number not in excited]
    explaining = [sketch(x[:, varied(x)]) for x in others]
    x = torch.cat([wanted[:, :0], *explaining], dim=1)
    if not x.shape[1]:
        return 1.0
    if len(x) <= x.shape[1] + min(size, FEW) + 1:
        return 0.0 if size <= FEW else 1.0
    least = leave_one_out(standard(x), standard(sketch(wanted)))
    return 1.0 if least is None else min(1.0, least[0])


def varied(x: Tensor) -> Tensor:
    """Which numbers are not the same in all rows, but for rounding: `(size,)` bool."""
    if len(x) < 2:
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    return (x - x.mean(dim=0)).abs().amax(dim=0) > 1e-6 * x.abs().amax(dim=0)


def standard(x: Tensor) -> Tensor:
    """In units of mean zero and spread one."""
    x = x - x.mean(dim=0)
    return x / x.square().mean(dim=0).sqrt().clamp_min(torch.finfo(x.dtype).tiny)


def sketch(x: Tensor) -> Tensor:
    """Few numbers of a large row: sums of its numbers with random signs, always the same (count sketch)."""
    size = x.shape[1]
    if size <= SKETCH:
        return x
    generator = torch.Generator().manual_seed(size)
    buckets = torch.randint(SKETCH, (size,), generator=generator).to(x.device)
    signs = (2 * torch.randint(2, (size,), generator=generator) - 1).to(x)
    return x.new_zeros(len(x), SKETCH).index_add(1, buckets, standard(x) * signs)
