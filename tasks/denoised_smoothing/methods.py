"""The methods that train a denoiser by autograd; what comes behind it is known by its queries, or in full.

mse                 on images alone, no query
zo-ds, zo-ae-ds     zeroth-order gradients at the classifier's input, or in front of a decoder
student             a small network learns the classifier's answers on the way, and lends its derivative
fo-ds               backpropagation through the classifier, the upper reference

`deepzero` has a module of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from tasks.autograd import AutogradGradient
from tasks.denoised_smoothing import budget, networks, smoothing_parameter
from tasks.denoised_smoothing.classifiers.answers import Decoded
from tasks.denoised_smoothing.classifiers.stack import Box, Twin
from tasks.denoised_smoothing.config import WIDE, Config, Variant, read
from tasks.denoised_smoothing.defence import Batch, Defence, of_seed, problem_of
from tasks.denoised_smoothing.networks import box_loss, image_loss
from tasks.denoised_smoothing.smoothing_parameter import Mu
from tasks.errors import ProblemError
from tasks.problem import Setup, Trained
from tasks.runs.result import TrainingOutcome
from tasks.tally import evaluated
from tasks.workers import group

AUTOENCODER = "autoencoder"  # its stage in a run
AFTER = 10**8  # added to a step's number, so that other draws are made for it than for the denoiser
FIRST = 2 * 10**9  # number of the first batch that a student asks for before training, beyond all steps
VALIDATIONS = 20  # of what asks nothing
ASKED = 256  # images that a student asks for at a time
STUDENT_LOSSES = {"logits": "kl-logits", "probabilities": "kl-logits", "labels": "kl"}  # smoothed ones, too

Pair = tuple[Tensor, Tensor]  # what goes in, what is to come out
Through = Callable[[int, Tensor, Tensor], Tensor]


def none(setup: Setup) -> Trained:
    """No denoiser."""
    return Trained(nn.Identity(), TrainingOutcome(setup.stage))


def mse(setup: Setup) -> Trained:
    """The denoiser learns to restore clean images, as Zhang et al. (2017) train it."""
    problem, config = problem_of(setup), setup.config

    def batch(i: int) -> Pair:
        noisy, clean, _ = problem.images.train.batch(setup.seed, i, config.batch, config.sigma)
        return noisy, clean

    validation = problem.images.validation
    index = torch.arange(config.validation_images) % len(validation)
    return _restore(setup, batch, (problem.held_out(setup.seed)[0], validation.images(index)))


def autoencoder(setup: Setup) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder that restore clean images; found once for all methods of a seed."""
    problem, config = problem_of(setup), setup.config
    shape, sizes = problem.images.shape, (config.latent_widths, config.latent, config.latent_convolutions)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(setup.seed)
        network = nn.Sequential(networks.encoder(shape, *sizes), networks.decoder(shape, *sizes))

    def batch(i: int) -> Pair:
        _, clean, _ = problem.images.train.batch(setup.seed, AFTER + i, config.batch, config.sigma)
        return clean, clean

    validation = problem.images.validation
    clean = validation.images(torch.arange(min(len(validation), config.validation_images)))
    _restore(replace(setup, name=AUTOENCODER, network=network), batch, (clean, clean))
    return network[0], network[1]


def _restore(setup: Setup, batch: Callable[[int], Pair], held_out: Pair) -> Trained:
    steps = setup.config.steps

    def objective(network: nn.Module, pair: Pair) -> Tensor:
        return image_loss(network(pair[0]), pair[1])

    @torch.no_grad()
    def validate(network: nn.Module) -> float:
        network.eval()
        parts = zip(held_out[0].split(256), held_out[1].split(256), strict=True)
        total = sum(image_loss(network(given).clamp(0, 1), wanted).sum().item() for given, wanted in parts)
        network.train()
        return total / len(held_out[0])

    setup = replace(setup, batch=batch, objective=objective, steps=steps, validate=validate)
    gradient = AutogradGradient(setup.network, objective, {})
    return setup.descend(gradient, validate_every=math.ceil(steps / VALIDATIONS))


@dataclass(frozen=True)
class Start:
    """What a method through the classifier begins with.

    Attributes:
        setup: With the weights to start from, and the held-out error of the classifier to choose by.
        problem: Of the setup.
        variant: The method's name, read.
        asked: Queries before the first step, by what for.
    """

    setup: Setup
    problem: Defence
    variant: Variant
    asked: dict[str, int]

    @classmethod
    def of(cls, setup: Setup) -> Start:
        """Ask for the classes that training images are to be taken for, and take the denoiser of mse."""
        problem, network = problem_of(setup), setup.network
        if problem.config.start == "mse":
            network = copy.deepcopy(setup.trained["mse"].network)
        setup = of_seed(replace(setup, network=network))
        _ = problem.targets
        return cls(setup, problem, read(setup.name), {"clean images": budget.clean_queries(problem)})

    @property
    def fixed(self) -> int:
        """What the steps cannot have of the budget: asked already, or for validation."""
        return sum(self.asked.values()) + budget.validation_queries(self.problem.config)

    def steps(self, each: int, more: int = 0) -> int:
        """How many steps of `each` queries the budget pays for, after `more` that come but once."""
        name = self.variant.name
        return budget.steps_within(self.problem.config.queries_of(name), self.fixed + more, each, name)

    def batch(self, rows: int) -> Callable[[int], Batch]:
        """The batches of all steps, of so many images."""
        return lambda i: self.problem.batch(self.setup.seed, i, rows)

    def told(self, trained: Trained) -> Trained:
        """What training took, with the queries by what for."""
        outcome = trained.outcome
        asked = {
            **self.asked,
            "validation": outcome.judging.rows_asked,
            "training": outcome.ledger.rows_asked,
        }
        figures = {f"queries: {kind}": count for kind, count in asked.items()}
        return replace(trained, queries=sum(asked.values()), figures=figures)


@dataclass(frozen=True)
class Front:
    """What is trained, and what stands between it and the classifier's images.

    Attributes:
        network: Noisy images to what the box's input is made of.
        decoder: From there to images; None where the network gives images.
    """

    network: nn.Module
    decoder: nn.Module | None = None

    def given(self, noisy: Tensor) -> Tensor:
        """What the box gets: images in [0, 1], or latent vectors."""
        found = self.network(noisy)
        return found if self.decoder is not None else found.clamp(0, 1)

    def image(self, given: Tensor) -> Tensor:
        """The image that the classifier sees."""
        return given if self.decoder is None else self.decoder(given)

    def whole(self) -> nn.Module:
        """Images to images."""
        return self.network if self.decoder is None else nn.Sequential(self.network, self.decoder)


class FrontGradient:
    """The gradient of a network in front of the classifier: by autograd from what arrives at its outputs.

    Args:
        front: What is trained.
        through: `(step, given, target) -> loss`: fills `.grad` of `given`, a leaf; the loss is
            detached.
        mse_weight: What the square error of the denoised image is added with.
        solver: What stands for the classifier's derivative, if that has a state.
    """

    def __init__(
        self,
        front: Front,
        through: Through,
        mse_weight: float = 0.0,
        solver: zo.box_gradient.DifferentiableBox | zo.StudentTangent | None = None,
    ) -> None:
        self.front, self.through, self.mse_weight, self.solver = front, through, mse_weight, solver
        self.steps = 0

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradient at a batch to `.grad`; the loss, detached."""
        noisy, clean, target = batch
        given = self.front.given(noisy)
        # a leaf of its own: a student learns, in place, between backward passes of parts of a batch
        leaf = given.detach().requires_grad_()
        loss = self.through(self.steps, leaf, target)
        if self.mse_weight:
            added = self.mse_weight * image_loss(self.front.image(leaf), clean).mean()
            added.backward()
            loss = loss + added.detach()
        if leaf.grad is not None:
            given.backward(leaf.grad)
        self.steps += 1
        return loss

    def metrics(self) -> dict[str, float]:
        """Perturbed rows, and those of them that failed."""
        if not isinstance(self.solver, zo.box_gradient.DifferentiableBox):
            return {}
        return {"queries": self.solver.counts.rows, "dropped": self.solver.counts.dropped}

    def state_dict(self) -> dict[str, Any]:
        """The number of the next step, and what the solver carries on."""
        return {"steps": self.steps, "solver": None if self.solver is None else self.solver.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps = state["steps"]
        if self.solver is not None:
            self.solver.load_state_dict(state["solver"])


def _descend(
    start: Start, front: Front, gradient: FrontGradient, steps: int, rows: int, rate: float
) -> Trained:
    """Adam on the loss of the scores."""
    setup = replace(
        start.setup, network=front.network, steps=steps, batch=start.batch(rows), learning_rate=rate
    )
    judged = None if front.decoder is None else front.whole()
    every = math.ceil(steps / start.problem.config.validations)
    return start.told(setup.descend(gradient, judged=judged, validate_every=every))


def mean_loss(scores: Tensor, target: Tensor, kind: str, rows: int) -> Tensor:
    """The sum of the losses of rows that did not fail, over `rows`; zero, with a graph, if there are none.

    Rows that failed are left out by indexing: multiplied by zero, their NaN would reach the weights.
    """
    alive = scores.isfinite().all(dim=1) & (target >= 0)
    return box_loss(scores[alive], target[alive], kind).sum() / rows


def fo_ds(setup: Setup) -> Trained:
    """Denoised smoothing as published for white boxes (Salman et al. 2020), through the logits' derivative.

    Its rows are counted as queries; each is also differentiated.
    """
    start = Start.of(setup)
    config, problem, front = start.problem.config, start.problem, Front(start.setup.network)
    twin = twin_of(problem.classifier)

    def through(_: int, given: Tensor, target: Tensor) -> Tensor:
        if group.rank() == 0:  # every process differentiates them all; they are not sent, so not `rows_run`
            evaluated(problem.box).ledger.count(calls=1, rows_asked=len(given))
        loss = mean_loss(twin(given), target, "logits", len(given))
        loss.backward()
        return loss.detach()

    gradient = FrontGradient(front, through, config.mse_weight)
    return _descend(start, front, gradient, start.steps(config.batch), config.batch, config.learning_rate)


def twin_of(box: Box) -> Twin:
    """The classifier's differentiable twin.

    Raises:
        ProblemError: It has none.
    """
    if box.twin is None:
        raise ProblemError(
            f"fo-ds: expected a classifier that can be differentiated, got {box.scores!r}. Leave fo-ds out "
            "of --methods, or give the network as a TorchModule."
        )
    return box.twin


def zo_ds(setup: Setup) -> Trained:
    """Denoised smoothing of Zhang et al. (2022), the box's derivative from queries, autograd before it."""
    start = Start.of(setup)
    return _differences(start, Front(start.setup.network), start.problem.box)


def zo_ae_ds(setup: Setup) -> Trained:
    """zo-ae-ds (Zhang et al. 2022): denoiser and encoder are trained, the decoder belongs to the box."""
    start = Start.of(setup)
    encoder, decoder = autoencoder(setup)
    decoder = decoder.eval().requires_grad_(False)
    box = Decoded(start.problem.box, decoder, start.problem.latent_size)
    return _differences(
        start, Front(nn.Sequential(start.setup.network, copy.deepcopy(encoder)), decoder), box
    )


def _differences(start: Start, front: Front, box: BlackBoxFunction) -> Trained:
    config, variant, kind = start.problem.config, start.variant, start.problem.classifier.kind
    latent, size = front.decoder is not None, math.prod(box.inputs[0].shape)
    space = "latent" if latent else "image"
    mu = smoothing_parameter.find(start.setup, variant, box, front.given, space)
    start.asked["mu"] = mu.queries
    rule = estimator(config, variant, mu, size, latent)
    solver = zo.differentiable(box, rule, seed=start.setup.seed, max_dropped=0.5)

    def through(_: int, given: Tensor, target: Tensor) -> Tensor:
        loss = mean_loss(solver(given), target, kind, len(given))
        loss.backward()
        return loss.detach()

    steps = start.steps(budget.queries_of_step(config, variant, size))
    gradient = FrontGradient(front, through, config.mse_weight, solver)
    return _descend(start, front, gradient, steps, config.zo_batch, config.zo_learning_rate)


def estimator(config: Config, variant: Variant, mu: Mu, size: int, latent: bool) -> zo.CGE | zo.RowRGE:
    """The rule that a method's name asks for, or the configuration.

    Args:
        config: Of the run.
        variant: Whose directions may differ from the configuration's.
        mu: Smoothing parameters of the box.
        size: Numbers of its input.
        latent: Whether that is a latent vector, which has no frequencies.
    """
    kind = variant.kind
    central = kind == WIDE or config.central
    step = mu.of(kind, central, size)
    if kind == "cge":
        return zo.CGE(step, central=central)
    return zo.RowRGE(
        step,
        config.input_directions,
        "gaussian" if kind == "rge" else "orthogonal",
        central,
        zo.DCTBasis(config.modes) if kind == "dct" and not latent else None,
    )


def student(setup: Setup) -> Trained:
    """Some queries before training, then a few rows of each batch; the student learns a step from them.

    The loss of all rows is that of the student's answers; the classifier's own are what the student learns,
    and what the weights are judged by. Where they are not better than the start's on held-out images, asked
    of the classifier itself, the start is kept: a student is smooth also where the classifier is not, and may
    mislead.
    """
    start = Start.of(setup)
    problem, config, front = start.problem, start.problem.config, Front(start.setup.network)
    kind, rows, steps = problem.classifier.kind, start.steps(1), config.student_steps
    # what batches cannot take comes before them, too
    first = max(2, round(config.student_first * rows), rows - steps * config.batch)
    tangent = _tangent(start)

    def asked(i: int) -> int:
        """How many rows are asked in a step: the same for all, up to rounding."""
        left = max(0, rows - first)
        return (i + 1) * left // steps - i * left // steps

    def through(i: int, given: Tensor, target: Tensor) -> Tensor:
        if i == 0:
            _first_lesson(start, front, tangent, first)
        _lesson(problem, tangent, given.detach()[: asked(i)], steps=1)
        known = target >= 0
        loss = _student_loss(tangent.outputs(given)[known], target[known], kind).sum() / len(given)
        loss.backward()
        return loss.detach()

    gradient = FrontGradient(front, through, config.mse_weight, tangent)
    return _descend(start, front, gradient, steps, config.batch, config.learning_rate)


def _student_loss(outputs: Tensor, target: Tensor, kind: str) -> Tensor:
    """Cross-entropy: of labels the student has probabilities, of all else logits."""
    if kind == "labels":
        return -outputs.clamp(min=1e-6).log().gather(1, target[:, None]).squeeze(1)
    return box_loss(outputs, target, kind)


def _tangent(start: Start) -> zo.StudentTangent:
    config, box, seed = start.problem.config, start.problem.classifier, start.setup.seed
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = networks.student(box.shape, box.classes, config.student_width)
    return zo.StudentTangent(
        network,
        loss=STUDENT_LOSSES[box.kind],
        window=config.student_window,
        batch=config.student_batch,
        learning_rate=config.student_learning_rate,
        seed=seed,
    )


@torch.no_grad()
def _first_lesson(start: Start, front: Front, tangent: zo.StudentTangent, rows: int) -> None:
    """Ask for denoised images before training, and learn from the answers."""
    config, images = start.problem.config, []
    front.network.eval()
    for number, begin in enumerate(range(0, rows, config.batch)):
        count = min(config.batch, rows - begin)
        noisy, _, _ = start.problem.batch(start.setup.seed, FIRST + number, count)
        images.append(front.given(noisy))
    front.network.train()
    _lesson(start.problem, tangent, torch.cat(images), config.student_first_steps)


@torch.no_grad()
def _lesson(problem: Defence, tangent: zo.StudentTangent, images: Tensor, steps: int) -> None:
    """Ask for images, if there are any, and learn from these answers and those before."""
    if not len(images):
        tangent.learn(steps)
        return
    box, smoothing = problem.classifier, problem.config.student_smoothing
    answers = torch.cat([problem.box(some) for some in images.split(ASKED)])
    if box.kind == "labels":
        answers = (1 - smoothing) * answers + smoothing / box.classes
    tangent.fit(images, answers, steps)
