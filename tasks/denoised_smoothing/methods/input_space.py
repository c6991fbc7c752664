"""zo-ds and zo-ae-ds: zeroth-order gradients at the classifier's input, or in front of a decoder."""

from __future__ import annotations

import math

from torch import Tensor

import zo
from blackbox import BlackBoxFunction
from tasks.denoised_smoothing import budget, limits, smoothing_parameter
from tasks.denoised_smoothing.config import Config
from tasks.denoised_smoothing.limits import Method
from tasks.denoised_smoothing.methods.descent import Descent, Front, mean_loss
from tasks.denoised_smoothing.smoothing_parameter import Mu
from tasks.denoised_smoothing.trainer import Batch, Queries, Trained, Trainer


def zo_ds(
    trainer: Trainer, method: Method, front: Front, queries: Queries, box: BlackBoxFunction | None = None
) -> Trained:
    """Denoised smoothing of Zhang et al. (2022), the box's derivative from queries, autograd before it.

    Args:
        trainer: of the seed.
        method: with its directions and budget.
        front: what is trained.
        queries: asked so far.
        box: what the differences are of; the classifier, if None.
    """
    config = trainer.config
    box = trainer.box.scores if box is None else box
    space = "image" if front.decoder is None else "latent"
    size = math.prod(box.inputs[0].shape)
    mu = smoothing_parameter.find(trainer, method, box, front.given, space)
    queries.counts["mu"] += mu.queries
    rule = estimator(config, method, mu, size, space == "latent")
    solver = zo.differentiable(box, rule, seed=trainer.seed, max_dropped=0.5)
    each = budget.queries_of_step(config, method, size)
    fixed = queries.total + budget.validation_queries(config)
    steps = budget.steps_within(config.queries_of(method.name), fixed, each, method.name)

    def backward(i: int, given: Tensor, batch: Batch) -> Tensor:
        loss = mean_loss(solver(given), batch.target, trainer.box.kind, len(given))
        loss.backward()
        return loss.detach()

    rate, state = config.zo_learning_rate, {"solver": solver}
    return Descent(trainer, method.stage, front, steps, config.zo_batch, queries, rate, state).run(backward)


def estimator(config: Config, method: Method, mu: Mu, size: int, latent: bool) -> zo.CGE | zo.RowRGE:
    """The rule that a method names, or the configuration.

    Args:
        config: of the run.
        method: whose `way` may differ from the configuration's directions.
        mu: smoothing parameters of the box.
        size: numbers of its input.
        latent: whether that is a latent vector, which has no frequencies.
    """
    way = method.way or config.directions
    central = way == limits.WIDE or config.scheme == "antithetic"
    step = mu.of(way, central, size)
    if way == "cge":
        return zo.CGE(step, central=central)
    return zo.RowRGE(
        step,
        config.direction_count,
        "gaussian" if way == "rge" else "orthogonal",
        central,
        zo.DCTBasis(config.modes) if way == "dct" and not latent else None,
    )
