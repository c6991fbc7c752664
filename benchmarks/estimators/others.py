"""The ZO gradients of `torchopt` and `evotorch` as contenders, and the wiring to call them.

torchopt 0.7's `zero_order` has three methods, Gaussian here. `antithetic` is the estimator of
`zo.RGE(central=True)`. `naive`, mean of l(theta + sigma u) u / sigma, has no
counterpart in `zo`: the same mean, but the loss itself for a difference. `forward` should be that of
`scheme="forward"` and is not: it multiplies by sigma where it should divide, and from the second sample
on it subtracts the sample before's *difference*, not the loss of the base.

evotorch 0.6's symmetric Gaussian (PGPE's, fitnesses not ranked) gives sigma^2 times the antithetic
estimate, on purpose: it is the natural gradient of the distribution's mean.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import zo
from benchmarks.estimators.methods import CHUNK, MU, Fill, Method
from benchmarks.estimators.problems import Batch, Setting

TorchoptMethod: TypeAlias = Literal["naive", "forward", "antithetic"]
TORCHOPT: tuple[TorchoptMethod, ...] = ("naive", "forward", "antithetic")
PACKAGES = ("torchopt", "evotorch")
NOT_COMPARABLE = {
    "evotorch, PGPE without symmetry": "its baseline is the population's mean, it has no base evaluation",
    "evotorch, PGPE by default": "it ranks the losses: no gradient of the loss itself",
    "evotorch, SNES and XNES": "they rank the losses, and move a covariance too",
    "evotorch, CEM and CMA-ES": "they select the best, or move a covariance too: no gradient of the loss",
}


def installed(package: str) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(package) is not None


def other_methods() -> list[Method]:
    """Of the packages that are here, for settings without a black box.

    Their factor sigma^2 is divided out: it would count against them twice, once as the wrong scale and
    once where Adam's eps is no longer small.
    """
    methods = []
    if installed("torchopt"):
        for name in TORCHOPT:
            shown = "torchopt, forward / sigma^2" if name == "forward" else f"torchopt, {name}"
            methods.append(Method(shown, partial(_torchopt_fill, name), "torchopt"))
    if installed("evotorch"):
        methods.append(Method("evotorch, symmetric / sigma^2", _evotorch_fill, "evotorch"))
    return methods


def torchopt_gradient(
    method: TorchoptMethod,
    loss: Callable[[Tensor], Tensor],
    theta: Tensor,
    samples: int,
    sigma: float,
    draw: Callable[[Any], Tensor],
) -> Tensor:
    """What torchopt puts into `.grad` of a flat theta.

    Args:
        method: its name for the estimator.
        loss: `(size,)` to a number.
        theta: `(size,)`.
        samples: directions.
        sigma: smoothing parameter.
        draw: `draw(shape)`, the next direction.
    """
    zero_order = importlib.import_module("torchopt").diff.zero_order.zero_order
    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        zero_order(draw, method=method, num_samples=samples, sigma=sigma)(loss)(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def evotorch_gradient(
    losses: Callable[[Tensor], Tensor],
    theta: Tensor,
    sigma: float,
    *,
    queries: int = 0,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """Evotorch's gradient of the mean, its sign turned: it climbs, we go down.

    Args:
        losses: `(queries, size)` to `(queries,)`.
        theta: `(size,)`.
        sigma: of the Gaussian.
        queries: how many, even, where it draws for itself.
        generator: that it draws from.
        directions: `(directions, size)` in place of its own.
    """
    kind = importlib.import_module("evotorch.distributions").SymmetricSeparableGaussian
    mean = {"mu": theta, "sigma": torch.full_like(theta, sigma), "divide_mu_grad_by": "num_directions"}
    gaussian = kind(mean, dtype=theta.dtype)
    if directions is None:
        samples = gaussian.sample(queries, generator=generator)
    else:
        samples = torch.stack([theta + sigma * directions, theta - sigma * directions], dim=1).flatten(0, 1)
    return -gaussian.compute_gradients(samples, losses(samples), objective_sense="min")["mu"]


def _torchopt_fill(
    method: TorchoptMethod, setting: Setting, network: nn.Module, queries: int, seed: int
) -> Fill | None:
    if setting.box is not None:
        return None
    parameters = zo.estimators.Parameters(network)
    generator = torch.Generator().manual_seed(seed)
    samples = queries // 2 if method == "antithetic" else queries
    factor = MU**2 if method == "forward" else 1.0

    def fill(batch: Batch) -> None:
        def draw(shape: Any) -> Tensor:  # noqa: ANN401
            return torch.randn(tuple(shape), generator=generator)

        loss = partial(_loss, setting, network, parameters, batch)
        theta = parameters.flat()
        parameters.add_to_grad(torchopt_gradient(method, loss, theta, samples, MU, draw) / factor)

    return fill


def _evotorch_fill(setting: Setting, network: nn.Module, queries: int, seed: int) -> Fill | None:
    if setting.box is not None:
        return None
    parameters = zo.estimators.Parameters(network)
    generator = torch.Generator().manual_seed(seed)

    def fill(batch: Batch) -> None:
        losses = vmap(partial(_loss, setting, network, parameters, batch), chunk_size=CHUNK)
        with torch.no_grad():
            found = evotorch_gradient(losses, parameters.flat(), MU, queries=queries, generator=generator)
        parameters.add_to_grad(found / MU**2)

    return fill


def _loss(
    setting: Setting, network: nn.Module, parameters: zo.estimators.Parameters, batch: Batch, theta: Tensor
) -> Tensor:
    """The mean loss at flat weights."""
    weights = dict(zip(parameters.names, parameters.split(theta), strict=True))

    def call(x: Tensor) -> Tensor:
        return functional_call(network, weights, (x,))

    return setting.loss(None, call, batch).mean()  # pyright: ignore[reportArgumentType]
