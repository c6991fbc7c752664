"""An evolution strategy with a population of thirty, as networks are fine-tuned by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.tangents.problem import BenchmarkProblem
from zo.batches import map_tensors
from zo.draws import Key
from zo.parameters import Parameters

POPULATION = 30
NOISE = 161  # first word of the path of a key for draws


class Evolution:
    """Qiu et al. 2026 (arXiv 2509.24372): Gaussian noise on all weights, fitness in standard deviations.

    A member n has the weights theta + sigma e_n, and theta moves against the mean of z_n e_n, where z_n is
    its loss less the population's mean, over its standard deviation. No optimiser with a memory, no ranks,
    no pairs of both signs, as there. All members see the same batch. Theirs are a sigma of .001 and a
    population of 30, for language models of 10^9 weights; Liang et
    al. 2026 (arXiv 2602.00170) say why so few can do.

    Args:
        problem: the problem.
        network: that is trained.
        seed: of the noise.
        part: of each batch that is evaluated: a smaller one leaves rows for more steps.
        population: members.
        sigma: standard deviation of the noise.
    """

    def __init__(
        self,
        problem: BenchmarkProblem,
        network: nn.Module,
        seed: int,
        part: float = 1.0,
        population: int = POPULATION,
        sigma: float = 1e-3,
    ) -> None:
        self.objective, self.network, self.key = problem.objective(problem.box), network, Key(seed)
        self.part, self.population, self.sigma, self.step = part, population, sigma, 0

    @torch.no_grad()
    def backward(self, batch: Any) -> Tensor:
        """The mean of z_n e_n into `.grad`; returns the mean loss of the population."""
        few = map_tensors(lambda tensor: tensor[: max(1, math.ceil(self.part * len(tensor)))], batch)
        parameters, generator = Parameters(self.network), self.key.at(self.step).generator(NOISE)
        self.step += 1
        flat = parameters.flat()
        noise = torch.randn(self.population, len(flat), generator=generator).to(flat)
        losses = torch.stack([self._loss(parameters.split(flat + self.sigma * e), few) for e in noise])
        parameters.add_to_grad((weights_of(losses) @ noise.double() / self.population).to(flat))
        return losses.nanmean()

    def _loss(self, weights: list[Tensor], batch: Any) -> Tensor:
        """The mean loss of a batch, of the rows that did not fail."""
        names = [name for name, _ in self.network.named_parameters()]
        own = dict(zip(names, weights, strict=True))
        member = _Called(lambda *arrays: functional_call(self.network, own, arrays))
        return self.objective(member, batch).nanmean()


class _Called(nn.Module):
    """A module that is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arrays: Tensor) -> Any:
        return self.function(*arrays)


def weights_of(losses: Tensor) -> Tensor:
    """Losses in standard deviations from their mean.

    Zero for a member whose loss is not finite, and for all where none differs.
    """
    losses = losses.double()
    kept = losses.isfinite()
    if int(kept.sum()) < 2:
        return torch.zeros_like(losses)
    spread = losses[kept].std(correction=0)
    if float(spread) == 0.0:
        return torch.zeros_like(losses)
    return torch.where(kept, (losses - losses[kept].mean()) / spread, 0.0)
