"""`Program`: a program that calls a network, its twin in PyTorch, and what is trained inside of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from blackbox.adapters import Hosted

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Program:
    """A program, its twin and what is trained inside of it.

    Attributes:
        host: the program.
        network: makes a network of new weights.
        objective: the losses of rows through the program, `objective(network, batch)`.
        twin: the same through PyTorch.
        batch: `batch(generator, rows, held_out)`.
        steps: of a training.
    """

    host: Hosted
    network: Callable[[], nn.Module]
    objective: Callable[[nn.Module, Batch], Tensor]
    twin: Callable[[nn.Module, Batch], Tensor]
    batch: Callable[[np.random.Generator, int, bool], Batch]
    steps: int = 45
