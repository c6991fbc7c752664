"""The oracle: a gradient by central finite differences in float64, from a plain loop that does without `zo`.

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


def seed_everything(seed: int) -> None:
    """Start the generators that a forward may draw from: torch's, NumPy's and Python's."""
    torch.manual_seed(seed)
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


@torch.no_grad()
def gradient(objective: Objective, network: nn.Module, batch: Any, seed: int) -> list[Tensor]:
    """The gradient of the mean loss, one tensor for each trained parameter; leaves the network as it was."""
    network = deepcopy(network)
    found = []
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
        found.append(slopes)
    return found
