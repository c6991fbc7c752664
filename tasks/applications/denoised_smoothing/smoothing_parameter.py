"""mu: measured from the classifier's own answers, once for each seed and space, and converted for methods.

A slope taken with a step mu is wrong by noise over mu and by curvature times mu. Both show as disagreement
with the slope of a quarter of the step, so the step is taken whose slopes agree best. More and Wild's
formula, which `blackbox check` applies, wants the noise by itself; of a network behind a large scaling the
kinks are so many that they pass for noise, and it recommends steps as long as the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import zo
from blackbox import BlackBoxFunction, words
from tasks.applications.denoised_smoothing.budget import counted
from tasks.applications.denoised_smoothing.config import WIDE, Variant
from tasks.applications.denoised_smoothing.defence import problem_of
from tasks.applications.denoised_smoothing.networks import box_loss, predictions
from tasks.configuration import from_dict
from tasks.errors import ConfigurationError, RunFolderError
from tasks.folder import atomic, reading, stamp
from tasks.problem.data import evaluating
from tasks.rows.tally import RowTally
from tasks.training.setup import Setup
from zo.evaluators.state import moved

SAMPLES = 64  # the most lines that are looked along
LEVELS = 8  # steps, each a quarter of the one before
FEWEST = 4  # lines along which something must move at a step for it to be taken
AGREEING = 0.7  # relative disagreement beyond which no step is any good
MOVES, LINES = 104, 105  # first words of the keys' paths for these draws
FIRST = 10**9  # number of the first batch that is drawn for samples, beyond all steps


@dataclass(frozen=True)
class Mu:
    """Smoothing parameters at a box's input.

    Attributes:
        coordinate, coordinate_central: mu for single numbers, forward and central.
        direction, direction_central: mu for directions of unit length, forward and antithetic.
        queries: the queries of the measurement.
        measured: False where they come from the configuration.
    """

    coordinate: float
    coordinate_central: float
    direction: float
    direction_central: float
    queries: int = 0
    measured: bool = False

    @classmethod
    def same(cls, mu: float) -> Mu:
        """One for all."""
        return cls(mu, mu, mu, mu)

    def of(self, kind: str, central: bool, size: int) -> float:
        """Return the mu of some directions: Gaussian ones are longer than one by the root of their size."""
        if kind == "cge":
            return self.coordinate_central if central else self.coordinate
        mu = self.direction_central if central else self.direction
        return mu / math.sqrt(size) if kind == "rge" else mu


def find(
    setup: Setup, variant: Variant, box: BlackBoxFunction, front: Callable[[Tensor], Tensor], space: str
) -> Mu:
    """The smoothing parameters of a method, measured at noisy training images behind `front`.

    Args:
        setup: The setup of the method.
        variant: Its name, parsed; a method with a wide step takes the configuration's parameters.
        box: The classifier, perhaps with a decoder before it.
        front: The network before it.
        space: "image" or "latent", for the file that keeps them.
    """
    config = setup.config
    if variant.kind == WIDE:
        return Mu.same(config.wide_mu)
    if config.zeroth_order.input_mu is not None:
        return Mu.same(config.zeroth_order.input_mu)
    path, of = setup.run.path / f"mu-seed-{setup.seed}-{space}.json", stamp.settings(setup.run)
    if not (path.exists() and stamp.fits(setup.run, _content(path), of)):
        mu, queries = counted(RowTally(setup.boxes), lambda: _measured(setup, box, front))
        mu = replace(mu, queries=queries)
        atomic.write_json(path, {**asdict(mu), stamp.OF: of})
        setup.progress.say(
            f"mu of seed {setup.seed} ({space}, {words.counted(mu.queries, 'query')}): "
            + ("" if mu.measured else "slopes agree at no step, the wide one is taken: ")
            + f"{mu.direction:.2g} along directions, {mu.coordinate:.2g} of a single number"
        )
    content = {name: value for name, value in _content(path).items() if name != stamp.OF}
    try:
        return from_dict(Mu, content)
    except ConfigurationError as error:
        raise RunFolderError(f"{path}: {error} {_MEND}") from None


_MEND = "Delete it: in an unfinished run it is measured again."


def _content(path: Path) -> dict[str, Any]:
    return reading.json_object(path, _MEND)


@torch.no_grad()
def _measured(setup: Setup, box: BlackBoxFunction, front: Callable[[Tensor], Tensor]) -> Mu:
    config, problem = setup.config, problem_of(setup)
    unmeasured = Mu(config.sigma, config.sigma, config.wide_mu, config.wide_mu)
    lines = min(SAMPLES, (config.mu_queries - 1) // (4 * LEVELS + 1))
    if lines < FEWEST:  # no step could be taken
        return unmeasured
    noisy, _, labels = problem.batch(setup.seed, FIRST, lines)
    with evaluating(setup.network):  # a method that finds a measured mu has the same running statistics
        z = front(noisy).flatten(1)
    generator = zo.estimators.Key(setup.seed).generator(LINES)
    unit = torch.randn(z.shape, generator=generator)
    unit = unit / unit.norm(dim=1, keepdim=True)
    places = torch.randint(z.shape[1], (len(z),), generator=generator)
    single = functional.one_hot(places, z.shape[1]).float()

    def answers(rows: Tensor) -> Tensor:
        return box(rows.unflatten(1, box.inputs[0].shape))

    base = answers(z)
    target = torch.where(labels < 0, predictions(base).clamp(min=0), labels)
    with torch.enable_grad():  # the loss's slopes are looked at, in the scores that the box gave
        leaf = base.detach().nan_to_num().requires_grad_()
        (weight,) = torch.autograd.grad(box_loss(leaf, target, problem.classifier.kind).sum(), leaf)

    def change(moved: Tensor) -> Tensor:
        return ((answers(moved) - base).double() * weight.double()).sum(dim=1)

    best = []
    for directions, longest in ((single, 0.25), (unit, 0.25 * math.sqrt(z.shape[1]))):
        steps = [longest * 4.0**-level for level in range(LEVELS)]
        forward = torch.stack([change(z + mu * directions) for mu in steps])
        backward = torch.stack([change(z - mu * directions) for mu in steps])
        lengths = torch.tensor(steps, dtype=torch.float64)[:, None]
        best += [best_step(steps, forward / lengths), best_step(steps, (forward - backward) / (2 * lengths))]
    if any(mu is None for mu in best):
        return unmeasured
    return Mu(*[mu for mu in best if mu is not None], measured=True)


def best_step(steps: list[float], slopes: Tensor) -> float | None:
    """The step whose slopes agree best with those of the next smaller one; None if none do.

    Args:
        steps: largest first.
        slopes: `(steps, lines)`; NaN where the classifier failed.
    """
    best, lowest = None, AGREEING
    for mu, here, there in zip(steps, slopes[:-1], slopes[1:], strict=False):
        good = here.isfinite() & there.isfinite()
        size = (here[good].square().sum() + there[good].square().sum()) / 2
        moving = int(((here[good] != 0) | (there[good] != 0)).sum())
        if moving < FEWEST or size == 0:
            continue
        distance = float(((here[good] - there[good]).square().sum() / size).sqrt())
        if distance < lowest:
            best, lowest = mu, distance
    return best


@torch.no_grad()
def of_weights(setup: Setup, network: nn.Module, mu: float) -> float:
    """The mu of weights that moves a denoised image as far as `mu` along a direction; it asks nothing.

    The median over some weights of how far the image goes when the weight moves, from values of the denoiser
    alone, taken in evaluation mode.
    """
    noisy, _, _ = problem_of(setup).batch(setup.seed, FIRST, 32)
    generator = zo.estimators.Key(setup.seed).generator(MOVES)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    flat = torch.cat([weight.flatten() for weight in weights])

    def parts(change: Tensor) -> list[Tensor]:
        pieces = change.split([weight.numel() for weight in weights])
        return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]

    places = torch.randperm(len(flat), generator=generator)[:64]
    step = 1e-2 * float(flat.square().mean().sqrt())
    training = network.training
    network.eval()
    base, lengths = network(noisy), []
    for place in places:
        change = torch.zeros_like(flat)
        change[place] = step
        with moved(weights, parts(change)):
            lengths.append(float((network(noisy) - base).flatten(1).norm(dim=1).mean()) / step)
    network.train(training)
    moving = sorted(length for length in lengths if length > 0)
    return mu / moving[len(moving) // 2] if moving else mu
