"""The image-classification run: images, training of every method and seed, evaluation, result."""

from __future__ import annotations

import math
from pathlib import Path

import torch

import zo
from tasks.errors import ConfigurationError
from tasks.image_classification import data, evaluation, limits, networks, sparse_set
from tasks.image_classification.config import Config
from tasks.image_classification.data.images import ImageData
from tasks.image_classification.evaluation import Evaluation, Examples
from tasks.image_classification.methods.every import METHODS
from tasks.image_classification.trainer import Trained, Trainer
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row

METRIC = "accuracy"


def run(run: Run, progress: Progress, data_folder: Path) -> None:
    """Do what is left of a run; it ends with `result.json`.

    Args:
        run: the run's folder, new or left off anywhere.
        progress: what the user sees.
        data_folder: where data sets are kept.
    """
    config = run.configuration(Config)
    torch.set_num_threads(config.threads)
    device = device_of(config.device)
    images = data.load(
        config.dataset,
        data_folder,
        train=config.train_images,
        validation=config.validation_images,
        test=config.test_images,
        device=device,
    )
    check(config, images)
    augmentation = data.AUGMENTATIONS[config.dataset] if config.augment else data.NO_AUGMENTATION
    table: list[Row] = []
    for seed in run.seeds:
        trainer = Trainer(run, config, images, augmentation, seed, progress)
        found: dict[str, Evaluation] = {}
        for method in config.methods:
            trained = METHODS[method](trainer)
            found[method] = evaluation.evaluate(
                trained.network, images.test, images.normalisation, len(images.classes)
            )
            table.append(_row(method, seed, found[method], trained))
        evaluation.write(found, Examples.of(images), run.path / evaluation_name(seed))
    Result.of(run, table).write(run.path)


def evaluation_name(seed: int) -> str:
    """File of a seed's evaluations in the run folder."""
    return f"evaluation-seed-{seed}.pt"


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise limits.refuse("device", "cpu, auto, or cuda where there is a GPU", name)
    return torch.device(name)


def check(config: Config, images: ImageData) -> None:
    """Refuse, before anything is trained, what does not go with the images or the network.

    Raises:
        ConfigurationError: naming the setting.
    """
    if len(images.train) < config.batch:
        raise limits.refuse("batch", f"at most the {len(images.train)} training images", config.batch)
    if config.augment and data.AUGMENTATIONS[config.dataset] == data.NO_AUGMENTATION:
        raise ConfigurationError(
            f"image-classification, augment: expected none for {config.dataset}, whose images must not be "
            "mirrored and leave no room for shifts, got it. Leave out --config.augment; where the preset has "
            "it, give --config.no-augment."
        )
    network = networks.make(config.network, len(images.classes), images.image_shape, width=config.width)
    size = zo.estimators.Parameters(network).size
    if {*config.methods} & {*limits.ON_SETS, "fo-sparse-weight", "rge", "pattern-search"}:
        sparse_set.check_sparsity(network, config.sparsity, config.dense)
    if "hybrid" in config.methods and sparse_set.coordinates(network, config.sparsity, config.dense) >= size:
        raise limits.refuse("sparsity", "weights outside the set for hybrid", config.sparsity)


def _row(method: str, seed: int, found: Evaluation, trained: Trained) -> Row:
    outcome = trained.outcome
    best = outcome.best_validation
    extra: dict[str, float | int | str | None] = {
        "loss": found.loss if math.isfinite(found.loss) else None,
        "parameters": sum(parameter.numel() for parameter in trained.network.parameters()),
        "steps": outcome.step,
        "chosen step": outcome.best_step,
        "validation accuracy": None if best is None else 1 - best,
        "dropped queries": trained.dropped,
    }
    value = found.accuracy if math.isfinite(found.accuracy) else None
    return Row(method, seed, METRIC, value, "", trained.rows, trained.queries, outcome.seconds, extra)
