"""The denoised-smoothing run: images, classifier, training of every method and seed, certificates, result."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blackbox.extras import MissingExtraError
from tasks.denoised_smoothing import budget, data, limits, networks, samples
from tasks.denoised_smoothing.certification.accuracy import average_certified_radius, certified_accuracy
from tasks.denoised_smoothing.certification.algorithm import Certificate
from tasks.denoised_smoothing.certification.export import export_denoiser
from tasks.denoised_smoothing.certification.bound import RADII, Settings
from tasks.denoised_smoothing.certification.smoothed import SmoothedClassifier
from tasks.denoised_smoothing.classifiers.stack import Box, make_box
from tasks.denoised_smoothing.config import Config
from tasks.denoised_smoothing.errors import FailedQueriesError, PlanError
from tasks.denoised_smoothing.losses import UNKNOWN, predictions
from tasks.denoised_smoothing.methods import every
from tasks.denoised_smoothing.methods.first_order import twin_of
from tasks.denoised_smoothing.trainer import Trained, Trainer, used
from tasks.progress import Progress
from tasks.runs import atomic
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row

FACTS = "facts.json"  # of data and classifier, for the report
ONNX = "denoiser.onnx"
METRIC = "certified accuracy at r = 0.25"


def run(run: Run, progress: Progress, data_folder: Path) -> None:
    """Do what is left of a run; it ends with `result.json`.

    Args:
        run: the run's folder, new or left off anywhere.
        progress: what the user sees.
        data_folder: not used: images are where the configuration says.
    """
    config = run.configuration(Config)
    torch.set_num_threads(config.threads)
    found = data.load(config)
    box = make_box(config, found, run.path)
    _check(run, config, found, box)
    settings = Settings(config.sigma, n=config.n, n0=config.n0, alpha=config.alpha)
    if caps := settings.cap_warning():
        progress.say(f"Note: {caps}")
    _write_facts(run, config, found, box)
    targets, asked = _targets(run, config, found, box)
    table: list[Row] = []
    for seed in run.seeds:
        trainer = Trainer(run, config, found, box, seed, progress, targets, asked)
        trained = every.train(trainer)
        samples.write(run.path / samples.name(seed), trainer, trained)
        for name in config.methods:
            certificates = _certify(trainer, name, trained[name])
            table.append(_row(name, seed, trained[name], certificates))
        if seed == run.seeds[0]:
            _export(run, trained, found.shape, progress)
    Result.of(run, table).write(run.path)


def certificates_name(seed: int, method: str) -> Path:
    """File of a method's certificates in the run folder."""
    return Path("certificates") / f"seed-{seed}" / f"{limits.read(method).stage}.tsv"


def _check(run: Run, config: Config, found: data.Data, box: Box) -> None:
    """Refuse what would be found out only after queries have been paid for."""
    shape = found.shape
    sizes = config.latent_widths, config.latent, config.latent_convolutions
    families = {limits.read(name).family for name in config.methods}
    if "zo-ae-ds" in families and config.latent_convolutions:
        least = 2 ** len(config.latent_widths)
        if any(side % least for side in shape[1:]):
            expected = f"layers that halve {shape[1]} x {shape[2]} pixels evenly"
            raise limits.refuse("latent_widths", expected, config.latent_widths)
    network = networks.DnCNN(shape[0], config.depth, config.width, config.batch_norm)
    budget.check(config, found, networks.latent_size(shape, *sizes), [network])
    if "fo-ds" in families:
        twin_of(box)
    planned = budget.planned(config, len(run.seeds))
    if config.budget is not None and planned > config.budget:
        raise PlanError(
            f"budget: expected a run of at most {config.budget:,} queries, got a plan of {planned:,} "
            f"({len(config.methods)} methods, {len(run.seeds)} seeds, certification included). None was "
            "asked. Raise --config.budget, or lower --config.queries, --config.n or --config.certify-images."
        )


def _write_facts(run: Run, config: Config, found: data.Data, box: Box) -> None:
    facts = {
        "images": found.name,
        "shape": list(found.shape),
        "classes": found.classes,
        "training images": len(found.train),
        "of them used through the classifier": len(used(config, found)),
        "validation images": len(found.validation),
        "test images": len(found.test),
        "certified images": min(config.certify_images, len(found.test)),
        "classifier": repr(box.scores),
        "base classifier": "classifier o clamp to [0, 1] o denoiser",
    }
    atomic.write_json(run.path / FACTS, facts)


def _export(run: Run, trained: dict[str, Trained], shape: tuple[int, int, int], progress: Progress) -> None:
    """The denoiser from queries that validation chose, or the mse one, as an ONNX file."""
    errors = {
        name: found.outcome.best_validation
        for name, found in trained.items()
        if limits.read(name).zero_order and found.outcome.best_validation is not None
    }
    best = min(errors, key=lambda name: errors[name], default="mse" if "mse" in trained else None)
    network = None if best is None else trained[best].network
    if network is None or (run.path / ONNX).exists():
        return
    try:
        export_denoiser(network, run.path / ONNX, shape)
        progress.say(f"Wrote {ONNX}: {best}, the best on held-out images of those trained from queries.")
    except MissingExtraError as error:
        progress.say(f"No {ONNX} is written: {error}")


def _targets(run: Run, config: Config, found: data.Data, box: Box) -> tuple[Tensor, int]:
    """The class that each training image is to be taken for, and how many queries it took to know."""
    images = used(config, found)
    if config.loss == "labels":
        return images.labels, 0
    path = run.path / "clean_predictions.npy"
    if not path.exists():
        parts = []
        for some in torch.arange(len(images)).split(256):
            parts.append(predictions(box.scores(images.images(some))))
            _check_answered(box, parts[-1])  # of each part: a server that is down is not asked for all
        atomic.write(path, lambda stream: np.save(stream, torch.cat(parts).numpy()))
    return torch.from_numpy(np.load(path, allow_pickle=False)), len(images)


def _check_answered(box: Box, found: Tensor) -> None:
    """Stop where most clean images have no answer: kept, they would be targets that nothing is learned from.

    Raises:
        FailedQueriesError: more than half of them.
    """
    failed = int((found == UNKNOWN).sum())
    if failed > len(found) / 2:
        raise FailedQueriesError(
            f"{box.scores!r}: expected answers to clean training images, got none to {failed} of "
            f"{len(found)}. Look at the service, then go on with: blackbox resume."
        )


def _certify(trainer: Trainer, name: str, trained: Trained) -> list[Certificate]:
    config, test = trainer.config, trainer.data.test
    count = min(config.certify_images, len(test))
    index = torch.arange(count)
    smoothed = SmoothedClassifier(
        trainer.box.scores, trained.network, sigma=config.sigma, seed=trainer.seed, method=name
    )
    counter = trainer.progress.counter(f"seed-{trainer.seed}/{name} certificates", unit="image")
    done = 0

    def after(_: Certificate) -> None:
        nonlocal done
        done += 1
        counter(done, count)

    path = trainer.run.path / certificates_name(trainer.seed, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that N caps the radius was said before
        return smoothed.certify(
            test.images(index), test.labels[index], config.n0, config.n, config.alpha, file=path, after=after
        )


def _row(name: str, seed: int, trained: Trained, certificates: list[Certificate]) -> Row:
    shares = certified_accuracy(certificates, RADII)
    outcome, network = trained.outcome, trained.network
    error = outcome.best_validation
    extra: dict[str, float | int | str | None] = {
        f"certified accuracy at r = {radius:g}": float(share)
        for radius, share in zip(RADII, shares, strict=True)
    }
    extra |= {
        "ACR": average_certified_radius(certificates),
        "abstained": sum(each.predict < 0 for each in certificates),
        "images": len(certificates),
        "queries of the certificates": sum(each.queries for each in certificates),
        "failed queries of the certificates": sum(each.failed for each in certificates),
        "weights": 0 if network is None else sum(weight.numel() for weight in network.parameters()),
        "steps": outcome.step,
        "chosen step": outcome.best_step,
        "start kept": int(outcome.best_step == 0 and outcome.step > 0),
        "validation accuracy": None if error is None or name == "mse" else 1 - error,
    }
    extra |= {f"queries: {kind}": count for kind, count in trained.queries.counts.items()}
    total = trained.queries.total
    value = float(shares[RADII.index(0.25)])
    return Row(name, seed, METRIC, value, "", total, total, outcome.seconds, extra)
