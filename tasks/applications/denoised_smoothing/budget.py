"""The use of a method's budget of queries: fixed costs, and the optimiser steps that are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

import zo
from blackbox import words
from tasks.applications.denoised_smoothing.config import WIDE, WITHOUT_QUERIES, Config, Variant, is_own, read
from tasks.applications.denoised_smoothing.defence import Defence
from tasks.errors import ConfigurationError
from tasks.rows.tally import RowTally, everywhere

Answer = TypeVar("Answer")


def counted(tally: RowTally, ask: Callable[[], Answer]) -> tuple[Answer, int]:
    """Return a function's answer, and the images that all processes of the run asked for; all call this."""
    ledger_before = tally.copy()
    answer = ask()
    return answer, everywhere(tally.since(ledger_before)).rows_asked


def validation_queries(config: Config) -> int:
    """The most that a stage's validations ask for, the start's included."""
    return (config.validations + 1) * config.validation_images


def clean_queries(problem: Defence) -> int:
    """Return the loss's one-time queries: the classifier's predictions on the clean training images."""
    return len(problem.used) if problem.config.loss == "stability" else 0


def queries_of_step(config: Config, variant: Variant, size: int) -> int:
    """Return the queries of an optimiser step of a method.

    Args:
        config: The run's settings.
        variant: A method that trains through the classifier.
        size: How many numbers its differences are taken in: those of an image or a latent vector.
    """
    kind, settings = variant.kind, config.zeroth_order
    sides = 2 if settings.central or kind == WIDE else 1
    if variant.family == "deepzero":
        return config.deepzero_batch * (1 + sides * settings.coordinates)
    if variant.family in ("zo-ds", "zo-ae-ds"):
        return config.zo_batch * (1 + sides * (size if kind == "cge" else settings.input_directions))
    return config.batch if variant.family == "fo-ds" else 1  # student's are spread over its steps


def steps_within(budget: int, fixed: int, a_step: int, method: str) -> int:
    """Return how many steps a budget pays for.

    Raises:
        ConfigurationError: Not one.
    """
    steps = (budget - fixed) // a_step
    if steps < 1:
        raise ConfigurationError(
            f"{method}: expected a budget of at least {fixed + a_step:,} queries ({fixed:,} for mu, clean "
            f"images and validation, {a_step:,} a step), got {budget:,}. Raise --queries, or lower "
            "--validations, --validation-images or --train-images."
        )
    return steps


def check(problem: Defence) -> None:
    """Refuse budgets that pay for no step, before the first query.

    Raises:
        ConfigurationError: Naming the method.
    """
    config = problem.config
    for variant in map(read, filter(is_own, config.methods)):
        if variant.family in WITHOUT_QUERIES:
            continue
        fixed = validation_queries(config) + clean_queries(problem)
        if _measures_mu(config, variant):
            fixed += config.mu_queries
        size = problem.latent_size if variant.family == "zo-ae-ds" else math.prod(problem.images.shape)
        most, a_step = config.queries_of(variant.name), queries_of_step(config, variant, size)
        if variant.family == "deepzero":
            fixed += config.deepzero_batch * _ratio_queries(config)
            steps = steps_within(most, fixed, a_step, variant.name)
            fixed += config.deepzero_batch * _checks(problem, steps)
        steps_within(most, fixed, a_step, variant.name)


def plan(problem: Defence, seeds: int) -> Sequence[str]:
    """The most that the methods and the certificates of a whole run ask for.

    Raises:
        ConfigurationError: More than the run may.
    """
    config = problem.config
    own_queries = {name: config.queries_of(name) for name in config.methods if is_own(name)}
    images = min(config.certify_images, len(problem.images.test))
    certificates = len(config.methods) * images * (config.n0 + config.n)
    planned = seeds * (sum(own_queries.values()) + certificates)
    if config.rows is not None and planned > config.rows:
        raise ConfigurationError(
            f"rows: expected a run of at most {config.rows:,} queries, got a plan of {planned:,} "
            f"({words.counted(len(config.methods), 'method')}, {words.counted(seeds, 'seed')}, certification "
            "included). None was asked. Raise --rows, or lower --queries, --n or --certify-images."
        )
    other_methods = [name for name in config.methods if not is_own(name)]
    return [
        *(f"{name}: at most {most:,} queries" for name, most in own_queries.items() if most),
        *(f"{name}: not known before the first step" for name in other_methods),
        f"certificates: {certificates:,} queries",
        f"in all {words.counted(seeds, 'seed')}: {planned:,} queries"
        + (" and those not known" if other_methods else ""),
    ]


def _checks(problem: Defence, steps: int) -> int:
    """The most objectives that deepzero's steps take beside their plans."""
    config, settings = problem.config, problem.config.zeroth_order
    with torch.random.fork_rng(devices=()):
        network = problem.network()
    rule = zo.CGE(1e-3, zo.RandomCoordinates(settings.coordinates), central=settings.central)
    gradient = zo.LossGradient(network, lambda *_: torch.zeros(1), rule, evaluator=config.evaluator)
    return gradient.most_checks(steps)


def _ratio_queries(config: Config) -> int:
    """The most objectives, bases included, that the layer ratios take, with the checks of evaluators."""
    return 2 * (2 * config.ratio_directions + 1 + 32) if config.ratios == "zo-grasp" else 0


def _measures_mu(config: Config, variant: Variant) -> bool:
    """Say whether a method needs a smoothing parameter that is measured, and it is not given."""
    if config.zeroth_order.input_mu is not None:
        return False
    if variant.family == "deepzero":
        return config.zeroth_order.mu is None
    return variant.family in ("zo-ds", "zo-ae-ds") and variant.kind != WIDE
