"""What evaluators are compared with: a worker of the paper's own algorithm, and a plain loop in place.

Both are Chen et al. 2024, "DeepZero", section 4: coordinate-wise forward differences, one process, feature
reuse. The inputs of all blocks are stored once a step; a query changes one weight in place, runs the network
from the block that holds the weight to the loss, and puts the weight back. Precision and kernels are
PyTorch's defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zo.evaluators.evaluator import Changes, Evaluator, Step
from zo.evaluators.forwards import replaced
from zo.perturbation import Coordinates, Perturbation


class Published(Evaluator):
    """The paper's worker: queries one after the other, each from the stored input of its block on.

    Batch norm in training takes batch statistics and moves its running ones, as in any training forward.
    Made for measurements: buffers (running statistics) are left as the last query left them.

    Args:
        chain: the part of the network whose children are the blocks; the network itself, or a part of it
            through which everything goes that depends on a weight.
    """

    def __init__(self, chain: nn.Sequential) -> None:
        self.chain = chain
        self._children = list(chain)
        self._features: list[Tensor] = []
        self._problem: Step | None = None

    def begin(self, problem: Step, base: Tensor) -> Changes:
        """See `Evaluator.begin`; single coordinates only."""
        return lambda queries: self.losses(problem, queries) - base

    def losses(self, problem: Step, perturbation: Perturbation) -> Tensor:
        """Losses `(queries, rows)`."""
        if not isinstance(perturbation, Coordinates):
            raise TypeError(f"Published: expected Coordinates, got {type(perturbation).__name__}.")
        if problem is not self._problem:
            self.store(problem)
        which, entries = problem.parameters.locate(perturbation.indices)
        blocks = self._blocks(problem)
        losses = []
        for number, entry, step in zip(which.tolist(), entries.tolist(), perturbation.steps, strict=True):
            tensor = problem.parameters.tensors[number]
            place = tuple(int(index) for index in np.unravel_index(entry, tensor.shape))
            kept = tensor[place].clone()
            tensor[place] += step
            with self._from_block(blocks[number]):
                losses.append(problem.objective(problem.network, problem.batch))
            tensor[place] = kept
        return torch.stack(losses)

    def store(self, problem: Step) -> None:
        """Keep the input of each block: one forward, once a step."""
        self._features = []

        def storing(x: Tensor) -> Tensor:
            for block in self._children:
                self._features.append(x)
                x = block(x)
            return x

        with replaced({self.chain: storing}):
            problem.objective(problem.network, problem.batch)
        self._problem = problem

    @contextmanager
    def _from_block(self, first: int) -> Iterator[None]:
        def rest(x: Tensor) -> Tensor:
            x = self._features[first]
            for block in self._children[first:]:
                x = block(x)
            return x

        with replaced({self.chain: rest}):
            yield

    def _blocks(self, problem: Step) -> list[int]:
        """For each tensor of the parameters the block that holds it."""
        holds = {id(p): number for number, block in enumerate(self._children) for p in block.parameters()}
        return [holds[id(tensor)] for tensor in problem.parameters.tensors]


class InPlace(Published):
    """The same as a user would write it who wants speed from plain PyTorch: nothing but the loop in place.

    The weight is written through a flat view, running statistics stay (`momentum` is 0), autograd keeps no
    versions (`torch.inference_mode`), and the memory format is the user's to choose.

    Args:
        chain: as for `Published`.
        memory_format: of the blocks' stored inputs, which PyTorch carries on to all activations behind them.
    """

    def __init__(
        self, chain: nn.Sequential, memory_format: torch.memory_format = torch.contiguous_format
    ) -> None:
        super().__init__(chain)
        self.memory_format = memory_format

    def losses(self, problem: Step, perturbation: Perturbation) -> Tensor:
        """Losses `(queries, rows)`."""
        assert isinstance(perturbation, Coordinates)
        if problem is not self._problem:
            self.store(problem)
            self._features = [
                x.contiguous(memory_format=self.memory_format) if x.ndim == 4 else x for x in self._features
            ]
        which, entries = problem.parameters.locate(perturbation.indices)
        blocks = self._blocks(problem)
        first = 0

        def rest(_: Tensor) -> Tensor:
            x = self._features[first]
            for block in self._children[first:]:
                x = block(x)
            return x

        losses = []
        with replaced({self.chain: rest}), _still(problem.network), torch.inference_mode():
            for number, entry, step in zip(
                which.tolist(), entries.tolist(), perturbation.steps.tolist(), strict=True
            ):
                flat, first = problem.parameters.tensors[number].data.view(-1), blocks[number]
                kept = flat[entry].item()
                flat[entry] += step
                losses.append(problem.objective(problem.network, problem.batch))
                flat[entry] = kept
        return torch.stack(losses)


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """Let batch norms leave their running statistics as they are in this block."""
    norms = [(module, module.momentum) for module in network.modules() if isinstance(module, _BatchNorm)]
    try:
        for norm, _ in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
