"""The methods that train a denoiser by autograd; the classifier is known by its queries, or in full.

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
from functools import partial

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from tasks.applications.denoised_smoothing import budget, networks, smoothing_parameter
from tasks.applications.denoised_smoothing.classifiers.stack import DefendedClassifier, Twin
from tasks.applications.denoised_smoothing.classifiers.wrappers import Decoded
from tasks.applications.denoised_smoothing.config import WIDE, Config, Variant, read
from tasks.applications.denoised_smoothing.defence import Batch, Defence, of_seed, problem_of
from tasks.applications.denoised_smoothing.networks import UNKNOWN, box_loss, image_loss
from tasks.applications.denoised_smoothing.smoothing_parameter import Mu
from tasks.errors import ConfigurationError, ProblemError
from tasks.methods.autograd import AutogradGradient, Stand
from tasks.problem.trained import Trained, TrainingOutcome
from tasks.rows.tally import count_alike
from tasks.training.setup import Setup
from tasks.training.stage import Stateful

AUTOENCODER = "autoencoder"  # its stage in a run
AFTER = 10**8  # added to a step's number, so that other draws are made for it than for the denoiser
FIRST = 2 * 10**9  # number of the first batch that a student asks for before training, beyond all steps
VALIDATIONS = 20  # of what asks nothing
ASKED = 256  # images that a student asks for at a time
STUDENT_LOSSES = {"logits": "kl-logits", "probabilities": "kl-logits", "labels": "kl"}  # smoothed ones, too

Pair = tuple[Tensor, Tensor]  # what goes in, what is to come out
Loss = Callable[[Tensor, Tensor], Tensor]  # scores, targets -> one loss a row


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
    """Encoder and decoder that restore clean images; trained once for all methods of a seed."""
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
        total = sum(image_loss(network(noisy).clamp(0, 1), clean).sum().item() for noisy, clean in parts)
        network.train()
        return total / len(held_out[0])

    setup = replace(setup, batch=batch, objective=objective, steps=steps, validate=validate)
    gradient = AutogradGradient(setup.network, objective, {})
    return setup.descend(gradient, validate_every=math.ceil(steps / VALIDATIONS))


@dataclass(frozen=True)
class TrainingStart:
    """The start of a method through the classifier.

    Attributes:
        setup: The setup, with the weights to start from, and the classifier's held-out error to choose by.
        problem: The problem of the setup.
        variant: The method's name, parsed.
        queries: Queries before the first step, by purpose.
    """

    setup: Setup
    problem: Defence
    variant: Variant
    queries: dict[str, int]

    @classmethod
    def of(cls, setup: Setup) -> TrainingStart:
        """Ask for the classes that training images are to be taken for, and take the denoiser of mse."""
        problem, network = problem_of(setup), setup.network
        if problem.config.start == "mse":
            if "mse" not in setup.trained:
                raise ConfigurationError(
                    f"{setup.stage}: expected the denoiser of mse to start from, got none, since mse is left "
                    "out. Resume without `--without mse`."
                )
            network = copy.deepcopy(setup.trained["mse"].network)
        setup = of_seed(replace(setup, network=network))
        _ = problem.targets
        return cls(setup, problem, read(setup.name), {"clean images": budget.clean_queries(problem)})

    @property
    def fixed(self) -> int:
        """The queries that the steps cannot have of the budget: asked already, or for validation."""
        return sum(self.queries.values()) + budget.validation_queries(self.problem.config)

    def steps(self, a_step: int, more: int = 0) -> int:
        """Return how many steps of `a_step` queries the budget pays for, after `more` that come but once."""
        name = self.variant.name
        return budget.steps_within(self.problem.config.queries_of(name), self.fixed + more, a_step, name)

    def batch(self, rows: int) -> Callable[[int], Batch]:
        """The batches of all steps, of so many images."""
        return lambda i: self.problem.batch(self.setup.seed, i, rows)

    def with_queries(self, trained: Trained) -> Trained:
        """Add the queries of a training to it, by purpose."""
        outcome = trained.outcome
        queries = {
            **self.queries,
            "validation": outcome.judging.rows_asked,
            "training": outcome.ledger.rows_asked,
        }
        figures = {f"queries: {kind}": count for kind, count in queries.items()}
        return replace(trained, queries=sum(queries.values()), figures=figures)


def sent_images(network: nn.Module, noisy: Tensor, decoder: nn.Module | None = None) -> Tensor:
    """Return the box's inputs for noisy images: images in [0, 1], or latent vectors for a decoder."""
    denoised = network(noisy)
    return denoised if decoder is not None else denoised.clamp(0, 1)


def known_losses(scores: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """One loss a row, zero and without a gradient where the classifier failed or the target is not known.

    Not NaN: a row that is taken out of the batch has the others asked for again. And not multiplied by zero:
    what failed would reach the weights.
    """
    alive = scores.isfinite().all(dim=1) & (target != UNKNOWN)
    losses = loss(torch.where(alive[:, None], scores, 0.0), target.clamp(min=0))
    return torch.where(alive, losses, 0.0)


def _gradient(
    start: TrainingStart,
    stand: Stand,
    loss: Loss,
    box: BlackBoxFunction | None = None,
    decoder: nn.Module | None = None,
) -> AutogradGradient:
    """Make the gradient of the scores' loss, and the image's; a stand-in takes the classifier's place."""
    classifier, weight = start.problem.box if box is None else box, start.problem.config.mse_weight

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        noisy, clean, target = batch
        sent = sent_images(network, noisy, decoder)
        losses = known_losses(classifier(sent), target, loss)
        if weight:
            losses = losses + weight * image_loss(sent if decoder is None else decoder(sent), clean)
        return losses

    return AutogradGradient(start.setup.network, objective, {classifier: stand})


def _descend(
    start: TrainingStart,
    gradient: AutogradGradient,
    steps: int,
    rows: int,
    rate: float,
    judged: nn.Module | None = None,
    state: Mapping[str, Stateful] | None = None,
) -> Trained:
    """Adam, in batches of so many rows."""
    setup = replace(start.setup, steps=steps, batch=start.batch(rows), learning_rate=rate)
    every = math.ceil(steps / start.problem.config.validations)
    return start.with_queries(setup.descend(gradient, judged=judged, state=state, validate_every=every))


def fo_ds(setup: Setup) -> Trained:
    """Denoised smoothing as published for white boxes (Salman et al. 2020), through the logits' derivative.

    Its rows are counted as queries; each is also differentiated.
    """
    start = TrainingStart.of(setup)
    config, problem = start.problem.config, start.problem
    twin = twin_of(problem.classifier)

    def stand(images: Tensor) -> Tensor:
        count_alike(problem.box, rows_asked=len(images))  # they are not sent, so not `rows_run`
        return twin(images)

    gradient = _gradient(start, stand, partial(box_loss, kind="logits"))
    return _descend(start, gradient, start.steps(config.batch), config.batch, config.learning_rate)


def twin_of(box: DefendedClassifier) -> Twin:
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
    start = TrainingStart.of(setup)
    return _differences(start, start.problem.box)


def zo_ae_ds(setup: Setup) -> Trained:
    """zo-ae-ds (Zhang et al. 2022): denoiser and encoder are trained, the decoder belongs to the box."""
    start = TrainingStart.of(setup)
    encoder, decoder = autoencoder(setup)
    decoder = decoder.eval().requires_grad_(False)
    box = Decoded(start.problem.box, decoder, start.problem.latent_size)
    both = nn.Sequential(start.setup.network, copy.deepcopy(encoder))
    return _differences(replace(start, setup=replace(start.setup, network=both)), box, decoder)


def _differences(start: TrainingStart, box: BlackBoxFunction, decoder: nn.Module | None = None) -> Trained:
    config, variant, network = start.problem.config, start.variant, start.setup.network
    latent, size = decoder is not None, math.prod(box.inputs[0].shape)
    front, space = partial(sent_images, network, decoder=decoder), "latent" if latent else "image"
    mu = smoothing_parameter.find(start.setup, variant, box, front, space)
    start.queries["mu"] = mu.queries
    rule = estimator(config, variant, mu, size, latent)
    # Wide steps over rounded answers are the method, mu is measured, and a budget counts every query.
    stand = zo.differentiable(box, rule, seed=start.setup.seed, max_dropped=0.5, check=False)
    gradient = _gradient(start, stand, partial(box_loss, kind=start.problem.classifier.kind), box, decoder)
    steps = start.steps(budget.queries_of_step(config, variant, size))
    judged = None if decoder is None else nn.Sequential(network, decoder)
    return _descend(start, gradient, steps, config.zo_batch, config.zo_learning_rate, judged)


def estimator(
    config: Config, variant: Variant, mu: Mu, size: int, latent: bool
) -> zo.CGE | zo.box_gradient.RowRGE:
    """The rule that a method's name asks for, or the configuration.

    Args:
        config: The run's settings.
        variant: The method, whose directions may differ from the configuration's.
        mu: Smoothing parameters of the box.
        size: Numbers of its input.
        latent: Whether that is a latent vector, which has no frequencies.
    """
    kind = variant.kind
    central = kind == WIDE or config.zeroth_order.central
    step = mu.of(kind, central, size)
    if kind == "cge":
        return zo.CGE(step, central=central)
    return zo.box_gradient.RowRGE(
        step,
        config.zeroth_order.input_directions,
        "gaussian" if kind == "rge" else "orthogonal",
        central,
        zo.box_gradient.DCTBasis(config.modes) if kind == "dct" and not latent else None,
    )


def student(setup: Setup) -> Trained:
    """Ask some queries before training, then a few rows of each batch; the student learns a step from them.

    The student's answers give the loss of all rows. The classifier's own answers teach the student, and judge
    the weights. If the trained weights are not better than the start's on held-out images, asked of the
    classifier itself, the start is kept: a student is smooth even where the classifier is not, and may
    mislead.
    """
    start = TrainingStart.of(setup)
    problem, config = start.problem, start.problem.config
    kind, rows, steps = problem.classifier.kind, start.steps(1), config.student_steps
    # what batches cannot take comes before them, too
    first = max(2, round(config.student_first * rows), rows - steps * config.batch)
    tangent = _tangent(start)

    def asked(i: int) -> int:
        """Return how many rows are asked in a step: the same for all, up to rounding."""
        rows_left = max(0, rows - first)
        return (i + 1) * rows_left // steps - i * rows_left // steps

    def stand(images: Tensor) -> Tensor:
        step = gradient.counts.steps
        if step == 0:
            _first_lesson(start, tangent, first)
        _lesson(problem, tangent, images.detach()[: asked(step)], steps=1)
        return tangent.outputs(images)

    # of labels a student has probabilities, of all else logits
    loss = _probability_loss if kind == "labels" else partial(box_loss, kind=kind)
    gradient = _gradient(start, stand, loss)
    state = {"student": tangent}
    return _descend(start, gradient, steps, config.batch, config.learning_rate, state=state)


def _probability_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of probabilities."""
    return -outputs.clamp(min=1e-6).log().gather(1, target[:, None]).squeeze(1)


def _tangent(start: TrainingStart) -> zo.tangents.StudentTangent:
    config, box, seed = start.problem.config, start.problem.classifier, start.setup.seed
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = networks.student(box.shape, box.classes, config.student_width)
    return zo.tangents.StudentTangent(
        network,
        loss=STUDENT_LOSSES[box.kind],
        window=config.student_window,
        batch=config.student_batch,
        learning_rate=config.student_learning_rate,
        seed=seed,
    )


@torch.no_grad()
def _first_lesson(start: TrainingStart, tangent: zo.tangents.StudentTangent, rows: int) -> None:
    """Ask for denoised images before training, and learn from the answers."""
    config, network, images = start.problem.config, start.setup.network, []
    network.eval()
    for number, begin in enumerate(range(0, rows, config.batch)):
        count = min(config.batch, rows - begin)
        noisy, _, _ = start.problem.batch(start.setup.seed, FIRST + number, count)
        images.append(sent_images(network, noisy))
    network.train()
    _lesson(start.problem, tangent, torch.cat(images), config.student_first_steps)


@torch.no_grad()
def _lesson(problem: Defence, tangent: zo.tangents.StudentTangent, images: Tensor, steps: int) -> None:
    """Ask for images, if there are any, and learn from these answers and those before."""
    if not len(images):
        tangent.learn(steps)
        return
    box, smoothing = problem.classifier, problem.config.student_smoothing
    answers = torch.cat([problem.box(some) for some in images.split(ASKED)])
    if box.kind == "labels":
        answers = (1 - smoothing) * answers + smoothing / box.classes
    tangent.fit(images, answers, steps)
