"""deepzero: sparse coordinate-wise gradients of the denoiser's own weights, no autograd anywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import zo
from tasks.applications.denoised_smoothing import budget, smoothing_parameter
from tasks.applications.denoised_smoothing.methods import TrainingStart, sent_images
from tasks.folder.journal import Journal
from tasks.methods import kept_ratios
from tasks.problem.trained import Trained
from tasks.rows.tally import RowTally
from tasks.training.setup import Setup

RATIO_BATCH = 10**9 + 1  # number of the batch that layer ratios are computed on


def deepzero(setup: Setup) -> Trained:
    """DeepZero (Chen et al. 2024): what is needed where the front part cannot be differentiated either.

    A step perturbs one weight at a time, of a set that is drawn anew with the layer ratios of ZO-GraSP.
    """
    start = TrainingStart.of(setup)
    problem, config, network = start.problem, start.problem.config, start.setup.network
    settings = config.zeroth_order
    mu = settings.mu
    if mu is None:
        front = partial(sent_images, network)
        measured = smoothing_parameter.find(start.setup, start.variant, problem.box, front, "image")
        start.queries["mu"] = measured.queries
        length = measured.direction_central if settings.central else measured.direction
        mu = smoothing_parameter.of_weights(start.setup, network, length)
    rule = zo.CGE(mu, _sparse_set(start, mu), central=settings.central)
    gradient = zo.LossGradient(
        network,
        problem.objective,
        rule,
        evaluator=config.evaluator,
        seed=setup.seed,
        chunk=settings.chunk,
        max_dropped=0.5,
        process_group=setup.process_group,
        first_alone=problem.classifier.first_alone,
    )
    # not settings.coordinates: each layer keeps one at least
    a_step = config.deepzero_batch * (1 + gradient.next_queries())
    checks = config.deepzero_batch * gradient.most_checks(start.steps(a_step))
    steps = start.steps(a_step, checks)
    ready = replace(
        start.setup,
        steps=steps,
        batch=start.batch(config.deepzero_batch),
        learning_rate=config.zo_learning_rate,
    )
    return start.with_queries(ready.descend(gradient, validate_every=math.ceil(steps / config.validations)))


def _sparse_set(start: TrainingStart, mu: float) -> zo.estimators.Sparsity:
    """The rule that the configuration names; layer ratios are computed once, and kept with the run."""
    problem, setup, config = start.problem, start.setup, start.problem.config
    size = sum(weight.numel() for weight in setup.network.parameters())
    count = min(config.zeroth_order.coordinates, size)
    if config.ratios == "uniform" or count == size:
        return zo.RandomCoordinates(count)

    def find(journal: Journal) -> tuple[zo.pruning.LayerRatios, int]:
        scores, query_count = budget.counted(
            RowTally([problem.box]),
            lambda: zo.pruning.scores(
                config.ratios,
                setup.network,
                problem.objective,
                problem.batch(setup.seed, RATIO_BATCH, config.deepzero_batch),
                mu=mu / math.sqrt(size),  # mu is a single weight's, and Gaussian directions move all of them
                step=mu,
                q=config.ratio_directions,
                seed=setup.seed,
                evaluator=config.evaluator,
                max_dropped=0.5,
                journal=journal,
                process_group=setup.process_group,
                first_alone=problem.classifier.first_alone,
            ),
        )
        return zo.pruning.layer_ratios(scores, 1 - count / size, minimum=0.1 * count / size), query_count

    layers, queries = kept_ratios.kept(setup, f"layer_ratios-{setup.stage.replace('/', '-')}", find)
    start.queries["layer ratios"] = queries
    return zo.estimators.LayerwiseCoordinates(layers)
