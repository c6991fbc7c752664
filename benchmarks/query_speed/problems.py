"""The networks that queries are timed on: ResNets, the wake's corrector, a denoiser.

Inputs are drawn, for the time of a query does not depend on what is seen; weights are first weights, and
labels are drawn too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import zo
from tasks.applications.denoised_smoothing.networks import DnCNN
from tasks.applications.image_classification import networks
from tasks.applications.image_classification.problem import cross_entropy
from tasks.applications.wake_flow.networks import Corrector, Scales, residual
from zo.evaluators.evaluator import Step
from zo.objective import Objective, losses
from zo.perturbation import Coordinates

MU = 5e-3  # the paper's
KEPT = 0.1  # of the weights is in the sparse set of a step: the paper's sparsity of 0.9
CLASSES = 10


@dataclass(frozen=True)
class Block:
    """A child of the chain that holds weights, and which flat indices are its own."""

    name: str
    indices: Tensor  # (weights,) int64

    @property
    def weights(self) -> int:
        """How many weights the block holds."""
        return len(self.indices)


@dataclass(frozen=True)
class Timed:
    """A problem whose queries are timed.

    Attributes:
        name: of the network.
        problem: network, parameters, objective, batch.
        chain: the part of the network whose children are its blocks.
    """

    name: str
    problem: Step
    chain: nn.Sequential

    def blocks(self) -> list[Block]:
        """The blocks that hold weights, from the input to the output."""
        blocks = []
        parameters = self.problem.parameters
        for number, child in enumerate(self.chain):
            ids = {id(tensor) for tensor in child.parameters()}
            pieces = [
                torch.arange(start, start + tensor.numel())
                for start, tensor in zip(parameters.starts, parameters.tensors, strict=True)
                if id(tensor) in ids
            ]
            if pieces:
                blocks.append(Block(f"{number} {type(child).__name__}", torch.cat(pieces)))
        return blocks

    def queries(self, block: Block, count: int, mu: float = MU, together: int = 1) -> Coordinates:
        """Coordinates of a block, always the same ones.

        Args:
            block: where they are.
            count: how many.
            mu: the step.
            together: how many in a row are of one tensor. In a step of thousands of queries neighbours
                are, and evaluators run them in one pass; a few drawn from anywhere would break it up.
        """
        generator = torch.Generator().manual_seed(count)
        starts = torch.tensor([*self.problem.parameters.starts, self.problem.parameters.size])
        drawn = []
        for first in range(0, count, together):
            # a tensor by its share of the weights, then any of its own
            place = block.indices[int((first + together / 2) / max(count, together) * block.weights)]
            number = int(torch.searchsorted(starts, place, right=True)) - 1
            size = min(together, count - first)
            low, high = int(starts[number]), int(starts[number + 1])
            drawn.append(torch.randint(low, high, (size,), generator=generator))
        indices = torch.cat(drawn)
        return Coordinates(indices, self.problem.parameters.steps(indices, mu))

    def in_float64(self) -> Step:
        """The same problem with the same values in double precision."""
        network = copy.deepcopy(self.problem.network).double().cpu()
        batch = tuple(_wide(tensor) for tensor in self.problem.batch)
        return Step(
            network, zo.estimators.Parameters(network), self.problem.objective, batch, self.problem.rows
        )

    def base(self) -> Tensor:
        """Losses of the base `(rows,)`."""
        problem = self.problem
        return losses(problem.objective, problem.network, problem.batch, problem.rows)


def make(
    name: str, rows: int, device: str = "cpu", *, width: int | None = None, training: bool = True
) -> Timed:
    """A problem by the name of its network.

    Args:
        name: a key of `MAKERS`, or a network of `tasks.applications.image_classification`.
        rows: of a batch.
        device: where it runs.
        width: channels, for a smaller network; None for the published one.
        training: whether the network is in training mode, where batch norm takes the batch's statistics.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        maker = MAKERS.get(name)
        network, chain, objective, batch = maker(rows, width) if maker else _classifier(name, rows, width)
    network.to(device).train(training)
    batch = tuple(tensor.to(device) for tensor in batch)
    parameters = zo.estimators.Parameters(network)
    return Timed(name, Step(network, parameters, objective, batch, rows), chain)


Made = tuple[nn.Module, nn.Sequential, Objective, tuple[Tensor, ...]]


def _first(batch: tuple[Tensor, ...]) -> Tensor:
    return batch[0]


def _last(batch: tuple[Tensor, ...]) -> Tensor:
    return batch[-1]


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().flatten(1).mean(dim=1)


def _classifier(name: str, rows: int, width: int | None) -> Made:
    network = networks.make(name, CLASSES, (3, 32, 32), width=width)
    assert isinstance(network, nn.Sequential)
    batch = torch.randn(rows, 3, 32, 32), torch.randint(CLASSES, (rows,))
    return network, network, zo.OutputLoss(cross_entropy, inputs=_first, targets=_last), batch


def _denoiser(rows: int, width: int | None) -> Made:
    network = DnCNN(3, width=width or 64)
    clean = torch.rand(rows, 3, 32, 32)
    batch = clean + 0.25 * torch.randn_like(clean), clean
    return network, network.net, zo.OutputLoss(_squared_error, inputs=_first, targets=_last), batch


def _wake(rows: int, width: int | None) -> Made:
    layers = residual(width or 32)
    network = Corrector(layers, Scales(velocity=0.3, reynolds=370.0, correction=0.04))
    velocity = torch.randn(rows, 2, 32, 64)
    batch = velocity, torch.rand(rows) * 1000 + 100, velocity + 0.04 * torch.randn_like(velocity)
    return network, layers, zo.OutputLoss(_squared_error, inputs=_wake_inputs, targets=_last), batch


def _wake_inputs(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch[:2]


MAKERS: dict[str, Callable[[int, int | None], Made]] = {"dncnn": _denoiser, "wake": _wake}


def _wide(tensor: Tensor) -> Any:
    return tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()
