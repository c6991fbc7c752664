"""Identifiability: inputs whose derivative values do not show, since rows determine them from other inputs.

Where an action is a function of the observation, as in closed loop, pairs (observation, action) lie on a
manifold: a model may fit all values and have any derivative by the action (closed-loop identifiability,
Gustavsson, Ljung and Söderström, Automatica 1977). So it is with an input that is the same in all rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import ArraySpec
from blackbox.layout import Grid
from zo.tangents.models.gaussian_process import leave_out, one_length

DETERMINED = 0.05  # of an input's variance unexplained: values do not show it below that; decision 121
# decision 87:
FEW = 32  # numbers of an input of which each is looked at; of a larger one, as a field, all together
ROUNDING = 1e-6  # of a number: what it may vary by and still be the same in all rows
SKETCH = 64  # numbers that a large input is brought down to, for others to be explained by


def constant(x: Tensor) -> Tensor:
    """Say which numbers of an input are the same in all rows.

    Args:
        x: the inputs asked for, `(rows, size)`.

    Returns:
        `(size,)` bool: all or none of a large input, since cells beyond a wall may be the same; and none
        where there is one row.
    """
    spread = (x - x.mean(dim=0)).abs().amax(dim=0) if len(x) else x.new_zeros(x.shape[1])
    same = spread <= ROUNDING * x.abs().amax(dim=0) if len(x) else spread == 0
    if x.shape[1] > FEW and (len(x) < 2 or not bool(same.all())):
        return torch.zeros_like(same)
    return same


def unexplained(inputs: Sequence[Tensor], runs: Tensor, place: int, excited: Sequence[int] = ()) -> float:
    """The share of an input's variance that the other inputs do not explain, each row left out in turn.

    Where the last step has enough runs, its rows decide, and all rows of a run are left out together: a value
    that stays the same along a run, such as a target, would be read off its neighbours.

    Args:
        inputs: the rows asked for, by input, `(rows, size)` each, without dither, the last step's at the end.
        runs: for these, the row of the batch that each belongs to.
        place: the input.
        excited: inputs that are dithered, which explain nothing.

    Returns:
        0 where the others determine it, or might: where few numbers stand in so few rows that a plane goes
        through all; 1 where the others say nothing of it, or there are none.
    """
    x = inputs[place].double()
    variation = ~constant(x)
    target, size = x[:, variation], min(x.shape[1], FEW)
    other_inputs = [y.double() for number, y in enumerate(inputs) if number not in (place, *excited)]
    explaining = torch.cat([target[:, :0], *(sketch(y[:, ~constant(y)]) for y in other_inputs)], dim=1)
    if not target.shape[1] or not explaining.shape[1]:
        return 1.0
    numbers = explaining.shape[1] + size
    if len(x) <= numbers + 1:
        return 0.0 if x.shape[1] <= FEW else 1.0
    target = sketch(target)
    groups = [(runs == run).nonzero().flatten().to(x.device) for run in runs.unique()]
    together = 2 * numbers <= len(groups) < len(runs)
    if together:
        explaining, target = explaining[-len(runs) :], target[-len(runs) :]
    explaining, target = _standard(explaining), _standard(target)
    choice = one_length(explaining, target)
    if choice is None:
        return 1.0
    alone = float(choice.errors.mean())
    return min(
        1.0, leave_out(groups, explaining, target, choice.lengths, choice.noise) if together else alone
    )


def _standard(x: Tensor) -> Tensor:
    """Standardise to mean zero and spread one."""
    x = x - x.mean(dim=0)
    return x / x.square().mean(dim=0).sqrt().clamp_min(torch.finfo(x.dtype).tiny)


def sketch(x: Tensor) -> Tensor:
    """Few numbers in the place of a large row: sums of its numbers with random signs (a count sketch)."""
    size = x.shape[1]
    if size <= SKETCH:
        return x
    generator = torch.Generator().manual_seed(size)
    places = torch.randint(SKETCH, (size,), generator=generator).to(x.device)
    signs = (2 * torch.randint(2, (size,), generator=generator) - 1).to(x)
    return x.new_zeros(len(x), SKETCH).index_add(1, places, x * signs)


def grid_of(specs: Sequence[ArraySpec]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The axes of the grid that arrays `(*space)` or `(channels, *space)` are all on, and which ends meet."""
    for count in (3, 2, 1):
        spaces = {tuple(spec.shape[-count:]) for spec in specs}
        fits = all(count <= len(spec.shape) <= count + 1 for spec in specs)
        all_grids = all(isinstance(spec.layout, Grid) for spec in specs)
        if fits and len(spaces) == 1 and math.prod(*spaces) > FEW and (count > 1 or all_grids):
            space = spaces.pop()
            ends = {spec.layout.periodic for spec in specs if isinstance(spec.layout, Grid)}
            periodic = ends.pop() if len(ends) == 1 else None
            return space, periodic if isinstance(periodic, tuple) else (bool(periodic),) * count
    return (), ()
