"""The oracle: a gradient in float64 that central finite differences confirm, from plain code without `zo`.

Most are autograd's, which costs one forward and backward; see `gradient`.

Each evaluation has a copy of network and batch of its own, and starts from the same random numbers. So
neither what a forward writes (buffers, frozen weights, Python attributes, its input) nor what it draws can
pass from one evaluation to the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Objective = Callable[[nn.Module, Any], Tensor]
STEP = 1e-5  # error about 1e-10 from truncation and 1e-11 from rounding, for losses of order one
AGREEMENT = 1e-8  # of a slope, for gradients of order one


def seed_everything(seed: int) -> None:
    """Start the generators that a forward may draw from: torch's, NumPy's and Python's."""
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` reads the whole stack, for absent GPUs
    np.random.seed(seed)  # noqa: NPY002 - the network under test draws from the global one
    random.seed(seed)


@torch.no_grad()
def evaluated(objective: Objective, network: nn.Module, batch: Any, seed: int) -> tuple[float, nn.Module]:
    """The mean loss of a copy of the network, and the copy as the forward left it."""
    network, batch = deepcopy((network, batch))
    seed_everything(seed)
    return objective(network, batch).mean().item(), network


def trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that a gradient is for, in the order of `named_parameters`."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def gradient(objective: Objective, network: nn.Module, batch: Any, seed: int) -> list[Tensor]:
    """The gradient of the mean loss, one tensor for each trained parameter; leaves the network as it was.

    It is autograd's where central differences along two random directions agree with it, which a gradient
    that is wrong anywhere would have to be by chance; and elsewhere central differences of each weight.
    """
    guess = by_autograd(objective, network, batch, seed)
    if guess is not None and all(agrees(guess, objective, network, batch, seed, draw) for draw in (1, 2)):
        return guess
    return entry_by_entry(objective, network, batch, seed)


def by_autograd(objective: Objective, network: nn.Module, batch: Any, seed: int) -> list[Tensor] | None:
    """Autograd's gradient; None where it has none."""
    network, batch = deepcopy((network, batch))
    seed_everything(seed)
    parameters = trained(network)
    try:
        with torch.enable_grad():
            loss = objective(network, batch).mean()
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    except Exception:  # weights that are written, or a box that has no derivative
        return None
    return [
        torch.zeros_like(p, dtype=torch.float64) if slope is None else slope.double()
        for slope, p in zip(grads, parameters, strict=True)
    ]


@torch.no_grad()
def agrees(
    guess: list[Tensor], objective: Objective, network: nn.Module, batch: Any, seed: int, draw: int
) -> bool:
    """Whether a random direction of length 1 has the slope that a gradient says."""
    draws = torch.Generator().manual_seed(draw)
    direction = [torch.randn(slope.shape, generator=draws, dtype=torch.float64) for slope in guess]
    length = torch.cat([part.flatten() for part in direction]).norm()
    losses = []
    for step in (STEP, -STEP):
        moved = deepcopy(network)
        for parameter, part in zip(trained(moved), direction, strict=True):
            parameter += (step * part / length).to(parameter.dtype)
        losses.append(evaluated(objective, moved, batch, seed)[0])
    said = sum((slope * part).sum() for slope, part in zip(guess, direction, strict=True)) / length
    size = max(1.0, *(slope.abs().max().item() for slope in guess))
    return abs((losses[0] - losses[1]) / (2 * STEP) - float(said)) <= AGREEMENT * size


@torch.no_grad()
def entry_by_entry(objective: Objective, network: nn.Module, batch: Any, seed: int) -> list[Tensor]:
    """Central differences of each weight."""
    network = deepcopy(network)
    grads = []
    for parameter in trained(network):
        slopes = torch.zeros(parameter.shape, dtype=torch.float64)
        for entry in np.ndindex(*parameter.shape):
            old = parameter[entry].item()
            parameter[entry] = old + STEP
            above, _ = evaluated(objective, network, batch, seed)
            parameter[entry] = old - STEP
            below, _ = evaluated(objective, network, batch, seed)
            parameter[entry] = old
            slopes[entry] = (above - below) / (2 * STEP)
        grads.append(slopes)
    return grads
