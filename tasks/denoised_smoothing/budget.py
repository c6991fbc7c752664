"""What a method's budget of queries pays for: what is fixed, and how many optimiser steps are left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import zo
from tasks.denoised_smoothing import limits
from tasks.denoised_smoothing.config import Config
from tasks.denoised_smoothing.data import Data
from tasks.denoised_smoothing.errors import PlanError
from tasks.denoised_smoothing.limits import Method
from tasks.denoised_smoothing.trainer import used


def validation_queries(config: Config) -> int:
    """The most that a stage's validations ask for, the start's included."""
    return (config.validations + 1) * config.validation_images


def clean_queries(config: Config, data: Data) -> int:
    """What the loss asks for once: the classifier's predictions on the clean training images."""
    return len(used(config, data)) if config.loss == "stability" else 0


def queries_of_step(config: Config, method: Method, size: int) -> int:
    """What an optimiser step of a method asks for.

    Args:
        config: of the run.
        method: one that trains through the classifier.
        size: numbers of what its differences are taken in, an image or a latent vector.
    """
    if method.family == "deepzero":
        return config.deepzero_batch * (1 + config.coordinates)
    if method.family in ("zo-ds", "zo-ae-ds"):
        way = method.way or config.directions
        sides = 2 if way == limits.WIDE or config.scheme == "antithetic" else 1
        return config.zo_batch * (1 + sides * (size if way == "cge" else config.direction_count))
    return config.batch if method.family == "fo-ds" else 1  # student's are spread over its steps


def first_checks(network: nn.Module, coordinates: int) -> int:
    """The most objectives that a first step takes beside its plan."""
    rule = zo.CGE(1e-3, zo.RandomCoordinates(coordinates))
    return zo.LossGradient(network, lambda *_: torch.zeros(1), rule).most_checks(1)


def ratio_queries(config: Config) -> int:
    """The most objectives, bases included, that the layer ratios take, with the checks of evaluators."""
    if config.ratios in ("uniform", "magnitude"):
        return 0
    gradients = 2 if config.ratios == "zo-grasp" else 1
    return gradients * (2 * config.ratio_directions + 1 + 32)


def steps_within(budget: int, fixed: int, each: int, method: str) -> int:
    """How many steps a budget pays for.

    Raises:
        PlanError: not one.
    """
    steps = (budget - fixed) // each
    if steps < 1:
        raise PlanError(
            f"{method}: expected a budget of at least {fixed + each:,} queries ({fixed:,} for mu, clean "
            f"images and validation, {each:,} a step), got {budget:,}. None was asked. Raise "
            "--config.queries, or lower --config.validations, --config.validation-images or "
            "--config.train-images."
        )
    return steps


def check(config: Config, data: Data, latent: int, networks: Sequence[nn.Module]) -> None:
    """Refuse budgets that pay for no step, before the first query.

    Args:
        config: of the run.
        data: of the run.
        latent: numbers of a latent vector.
        networks: the denoiser alone, for what the check of its evaluator takes.

    Raises:
        PlanError: naming the method.
    """
    size = data.shape[0] * data.shape[1] * data.shape[2]
    for name in config.methods:
        method = limits.read(name)
        if method.family in limits.WITHOUT_QUERIES:
            continue
        fixed = validation_queries(config) + clean_queries(config, data)
        if measures_mu(config, method):
            fixed += config.mu_queries
        if method.family == "deepzero":
            checked = sum(first_checks(network, config.coordinates) for network in networks)
            fixed += config.deepzero_batch * (checked + ratio_queries(config))
        each = queries_of_step(config, method, latent if method.family == "zo-ae-ds" else size)
        steps_within(config.queries_of(name), fixed, each, name)


def measures_mu(config: Config, method: Method) -> bool:
    """Whether a method needs a smoothing parameter that is measured, and it is not given."""
    needs = method.family in ("zo-ds", "zo-ae-ds", "deepzero")
    return needs and config.mu is None and method.way != limits.WIDE


def planned(config: Config, seeds: int) -> int:
    """The most queries of a whole run, certification included."""
    training = sum(config.queries_of(name) for name in config.methods)
    return seeds * (training + len(config.methods) * config.certify_images * (config.n0 + config.n))
