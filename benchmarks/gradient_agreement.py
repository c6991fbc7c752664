"""deepzero's gradient against the exact one on the same sets and batch, whole and by layer, at two mu.

    python -m benchmarks gradient_agreement --size ci       digits, a small ResNet, seconds
    python -m benchmarks gradient_agreement --size small    shapes, ResNet-20, sparsity .99, batches of 64

At the start and after some steps of fo-sparse-gradient, on what a run of the task would have: its layer
ratios, sets and batches. Asked for is a cosine of at least .999 at mu 5e-4. At the published 5e-3 a
difference quotient is another number than the derivative, in exact arithmetic too; so some weights of each
layer are compared with the quotient of the same mu in float64, which tells rounding and mistakes from what
mu does.
Writes `results/gradient_agreement.json`.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from tasks.image_classification import ImageClassification
from tasks.image_classification.config import DEMO, Config
from tasks.image_classification.methods import ExactGradient, rate
from tasks.image_classification.sparse_set import sparse_set
from tasks.problem import Setup
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.work import setup_of
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.evaluator import Problem
from zo.objective import losses
from zo.perturbation import Coordinates

MUS = (5e-4, 5e-3)


@dataclass(frozen=True)
class Size:
    """What is measured: settings of a run twice as long, steps between looks, weights a layer in float64."""

    config: Config
    steps: int
    truth: int


SIZES = {
    "ci": Size(
        replace(
            DEMO,
            width=3,
            train_images=320,
            validation_images=20,
            test_images=20,
            pruning_directions=8,
            evaluator="stacked",
            steps=2 * 10,
            warm_up=0.125,
        ),
        steps=10,
        truth=2,
    ),
    "small": Size(
        replace(
            DEMO,
            dataset="shapes",
            train_images=1280,
            validation_images=20,
            test_images=20,
            augment=True,
            network="resnet20",
            width=None,
            batch=64,
            sparsity=0.99,
            pruning_directions=8,
            pruning_images=64,
            evaluator="stacked",
            steps=2 * 200,
            warm_up=0.125,
        ),
        steps=200,
        truth=1,
    ),
}


@dataclass(frozen=True)
class Look:
    """How gradients agree at a step.

    Attributes:
        step: optimiser steps done.
        loss: of the batch, in nats.
        coordinates: in the set.
        whole: cosine of estimate and exact gradient by mu.
        layers: the same by mu and layer.
        float64: relative error against the quotient in float64, by mu, over the weights that were looked at.
        exact64: relative distance of that quotient from the derivative, both in float64: what mu does.
    """

    step: int
    loss: float
    coordinates: int
    whole: dict[str, float]
    layers: dict[str, dict[str, float]]
    float64: dict[str, float]
    exact64: dict[str, float]


def looks(size: Size, folder: Path, images: Path) -> list[Look]:
    """At the start, and after the size's steps of SGD along exact gradients on the sets.

    Args:
        size: of the run.
        folder: for the run's folder, which holds the layer ratios.
        images: where data sets are kept.
    """
    config = size.config
    torch.set_num_threads(config.threads)
    problem = ImageClassification(config, folder=images)
    run = Run.create(folder, problem.name(), "demo", config, [0])
    setup = setup_of(problem, run, "fo-sparse-gradient", 0, Progress(), {})
    network, sparsity = setup.network, sparse_set(setup)[0]
    first = look(setup, sparsity, 0, size)
    gradient = ExactGradient(network, setup.objective, sparsity, setup.seed)
    optimizer = torch.optim.SGD(
        network.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    for step in range(size.steps):
        optimizer.param_groups[0]["lr"] = rate(setup, step)
        optimizer.zero_grad()
        gradient.backward(setup.batch(step))
        optimizer.step()
    return [first, look(setup, sparsity, size.steps, size)]


def look(setup: Setup, sparsity: zo.estimators.Sparsity, step: int, size: Size) -> Look:
    """Both gradients of a step, on its set and batch; the network stays as it is."""
    network, objective, batch = setup.network, setup.problem.objective, setup.batch(step)
    assert isinstance(objective, zo.OutputLoss)
    indices = sparsity.draw(zo.estimators.Parameters(network), zo.estimators.Key(setup.seed, step))
    exact = ExactGradient(copy.deepcopy(network), objective, zo.FixedCoordinates(indices), setup.seed)
    loss = float(exact.backward(batch))
    truth = flat_grad(exact.network)
    chosen = some_of_each_layer(zo.estimators.Parameters(network), indices, size.truth)
    slopes = wide_slopes(network, objective, batch)[chosen]
    whole, layers, float64, exact64 = {}, {}, {}, {}
    for mu in MUS:
        gradient = zo.LossGradient(
            copy.deepcopy(network),
            objective,
            zo.CGE(mu, zo.FixedCoordinates(indices)),
            evaluator=Difference(),
            seed=setup.seed,
        )
        gradient.backward(batch)
        found = flat_grad(gradient.network)
        name = f"{mu:g}"
        whole[name], layers[name] = cosine(found, truth), by_layer(found, truth, gradient.parameters)
        quotients = wide_quotients(network, objective, batch, chosen, mu)
        float64[name] = float((found[chosen] - quotients).norm() / quotients.norm())
        exact64[name] = float((quotients - slopes).norm() / slopes.norm())
    return Look(step, loss, len(indices), whole, layers, float64, exact64)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors, in float64; NaN where one of them is zero."""
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def by_layer(found: Tensor, truth: Tensor, parameters: zo.estimators.Parameters) -> dict[str, float]:
    """The cosine of two flat gradients within each module, weight and bias together."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for name, a, b in zip(parameters.names, parameters.split(found), parameters.split(truth), strict=True):
        parts[name.rpartition(".")[0]].append((a.flatten(), b.flatten()))
    return {
        layer: cosine(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
        for layer, pairs in parts.items()
    }


def some_of_each_layer(parameters: zo.estimators.Parameters, indices: Tensor, count: int) -> Tensor:
    """Up to `count` of the indices `(coordinates,)` in each tensor, drawn at random but always the same."""
    which, _ = parameters.locate(indices)
    generator = zo.estimators.Key(0).generator(0)
    chosen = []
    for number in which.unique().tolist():
        own = indices[which == number]
        chosen.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def wide_slopes(network: nn.Module, objective: zo.OutputLoss, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The exact gradient `(parameters,)` of the same weights, in float64."""
    exact = ExactGradient(copy.deepcopy(network).double(), objective)
    exact.backward((batch[0].double(), batch[1]))
    return flat_grad(exact.network)


@torch.no_grad()
def wide_quotients(
    network: nn.Module, objective: zo.OutputLoss, batch: tuple[Tensor, Tensor], indices: Tensor, mu: float
) -> Tensor:
    """Difference quotients `(queries,)` at mu in float64, one query after another.

    Steps are those that the network's own weights can take, (w + mu) - w, as CGE has them.
    """
    steps = zo.estimators.Parameters(network).steps(indices, mu).double()
    wide, images = copy.deepcopy(network).double(), (batch[0].double(), batch[1])
    problem = Problem(wide, zo.estimators.Parameters(wide), objective, images, len(batch[1]))
    base = losses(objective, wide, images, len(batch[1]))
    return zo.evaluators.Loop().changes(problem, Coordinates(indices, steps), base).mean(dim=1) / steps


def flat_grad(network: nn.Module) -> Tensor:
    """All of `.grad` as one vector `(parameters,)`, on the CPU."""
    grads = [tensor.grad for tensor in zo.estimators.Parameters(network).tensors]
    return torch.cat([grad.reshape(-1).cpu() for grad in grads if grad is not None])


def main(words: Sequence[str]) -> list[Look]:
    """Measure a size, print and write it."""
    parser = protocol.options("gradient_agreement", __doc__, SIZES)
    parser.add_argument("--data", type=Path, default=Path("data"))
    chosen = parser.parse_args(words)
    size = SIZES[chosen.size]
    with tempfile.TemporaryDirectory(prefix="gradient-agreement-") as folder:
        found = looks(size, Path(folder), chosen.data)
    for each in found:
        print(f"step {each.step}, loss {each.loss:.3f}, {each.coordinates:,} coordinates")
        for mu, layers in each.layers.items():
            lowest = min(layers, key=lambda layer: layers[layer])
            print(
                f"  mu {mu}: cosine {each.whole[mu]:.6f}, lowest {layers[lowest]:.6f} ({lowest}); "
                f"{each.float64[mu]:.1e} from the quotient in float64, which is {each.exact64[mu]:.1e} from "
                "the derivative"
            )
    path = protocol.path("gradient_agreement", chosen.size)
    results = {"preset": chosen.size, "size": asdict(size), "looks": [asdict(x) for x in found]}
    protocol.write("gradient_agreement", words, results, path)
    return found
