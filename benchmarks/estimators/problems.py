"""What the estimators are tried on: a digits classifier, and a network in front of the wake's solver."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.staggered import start

Solver: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Batch: TypeAlias = tuple[Tensor, ...]

EXTRA = "pip install -e '.[benchmark]'"
WIDTH, STEPS = 8, 2  # of the wake: cells across, and solver steps between the network and the loss
WAKES, DIGITS = 32, 1024


@dataclass(frozen=True)
class Setting:
    """A training problem whose gradient autograd knows in float64.

    Attributes:
        name: for tables.
        network: makes it, with weights from torch's global generator.
        data: all of it, tensors with rows first.
        rows: of one batch.
        loss: what `loss(solver, network, batch) -> Tensor (rows,)` each row loses.
        box: the black box that the loss calls, or None.
        exact: its derivable double, for the truth alone.
    """

    name: str
    network: Callable[[], nn.Module]
    data: Batch
    rows: int
    loss: Callable[[Any, nn.Module, Batch], Tensor]
    box: WakeFlow | None = None
    exact: Solver | None = None

    def make(self, seed: int) -> nn.Module:
        """The network of a seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.network()

    def batch(self, seed: int, step: int = 0) -> Batch:
        """The batch of a step of a seed's run, the same for all estimators."""
        chosen = np.random.default_rng((seed, step)).permutation(len(self.data[0]))[: self.rows]
        return tuple(tensor[torch.as_tensor(chosen)] for tensor in self.data)

    def objective(self, network: nn.Module, batch: Batch) -> Tensor:
        """As ZO sees it: through the black box."""
        return self.loss(self.box, network, batch)

    def truth(self, network: nn.Module, batch: Batch) -> Tensor:
        """The gradient by autograd in float64, flat."""
        wide = copy.deepcopy(network).double()
        given = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch)
        loss = self.loss(self.exact, wide, given).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(wide.parameters()))])

    def training_loss(self, network: nn.Module) -> float:
        """The mean over all data, without a query's being counted."""
        with torch.no_grad():
            return float(self.loss(self.exact, network, self.data).mean())

    def box_rows(self) -> int:
        """Rows that the black box has run so far."""
        return 0 if self.box is None else self.box.ledger.rows_run


def size(network: nn.Module) -> int:
    """How many weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def digits(channels: int = 4, rows: int = 64) -> Setting:
    """A convolutional classifier of scikit-learn's 8 x 8 digits; 666 weights with 4 channels."""

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(8 * channels, 10),
        )

    return Setting(f"digits, {size(network())} weights", network, _digits(), rows, _cross_entropy)


def wake(rows: int = 8) -> Setting:
    """A network that sharpens blurred flows so that the solver takes them to the right ones.

    The solver stands between the network and the loss: `zo.differentiable` estimates each row's
    gradient there, and autograd does the network; `LossGradient` moves the weights through both.
    """
    box = WakeFlow(WIDTH, steps=STEPS, max_rows=128)
    name = f"wake, {size(_Sharpen())} weights"
    return Setting(name, _Sharpen, _wakes(box), rows, _flow_error, box, partial(_exact, box))


class _Sharpen(nn.Module):
    """Blurred velocity and Reynolds number to a velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 6, 5, padding=2), nn.SiLU(), nn.Conv2d(6, 2, 5, padding=2))

    def forward(self, velocity: Tensor) -> Tensor:
        """`(rows, 2, height, width)` to the same."""
        return velocity + 0.3 * self.layers(velocity)


def _cross_entropy(solver: None, network: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return F.cross_entropy(network(images), labels, reduction="none")


def _flow_error(solver: Solver, network: nn.Module, batch: Batch) -> Tensor:
    """Squared error after the solver, over that of a network that does nothing."""
    blurred, reynolds, target, scale = batch
    return (solver(network(blurred), reynolds) - target).square().mean(dim=(1, 2, 3)) / scale


def _exact(box: WakeFlow, velocity: Tensor, reynolds: Tensor) -> Tensor:
    for _ in range(STEPS):
        velocity = box.step(velocity, reynolds)
    return velocity


def _wakes(box: WakeFlow) -> Batch:
    pokes = torch.linspace(-0.5, 0.5, WAKES)
    velocity = torch.stack([start(box.step.channel, poke) for poke in pokes.tolist()])
    reynolds = torch.logspace(2, 3, WAKES)
    for _ in range(30):  # past the start, vortices are under way
        velocity = box(velocity, reynolds)
    blurred = F.avg_pool2d(F.pad(velocity, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    target = box(velocity, reynolds)
    error = (box(blurred, reynolds) - target).square().mean(dim=(1, 2, 3))
    return blurred, reynolds, target, error.mean().expand(WAKES)


def _digits() -> Batch:
    try:
        data = importlib.import_module("sklearn.datasets").load_digits()
    except ModuleNotFoundError as error:
        raise SystemExit(f"benchmarks.estimators needs scikit-learn for its digits: {EXTRA}") from error
    images = torch.tensor(data.images[:DIGITS], dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target[:DIGITS])
