"""Parts that train by the tasks' own runs, and go on from their checkpoints where they were stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import protocol
from benchmarks.gpu.parts import Place
from benchmarks.wake import CI
from tasks.applications.image_classification import ImageClassification
from tasks.applications.image_classification.config import PRESETS as IMAGES
from tasks.applications.image_classification.data import cifar
from tasks.applications.wake_flow.config import PRESETS as WAKES
from tasks.applications.wake_flow.problem import WakeFlow
from tasks.folder.result import Result
from tasks.folder.run import Run

EPOCHS = 50  # of the publication
STEPS = 20  # of an epoch's 175, that are run


def _row(finished: Run) -> list[dict[str, Any]]:
    return [
        {
            "method": row.method,
            "seed": row.seed,
            "result": row.value,
            "rows": row.rows,
            "queries": row.queries,
            "seconds": row.seconds,
        }
        for row in Result.read(finished.path).table
    ]


def wake_small(place: Place, seed: int) -> dict[str, Any]:
    """`wake-flow --preset small`, its methods for the network of 56,898 weights."""
    config = replace(
        WAKES["small"]
        if not place.tiny
        else replace(CI, large_channels=(4,), large_steps=4, large_non_steps=4),
        methods=("SRC", "NON large", "FO-SOL large", "TAN-SOL"),
        device=place.device,
        threads=1 if place.tiny else 4,
    )
    problem = WakeFlow(config, folder=place.scratch / "data")
    return {"rows": _row(protocol.finished(problem, place.size, (seed,), place.scratch / "runs"))}


def epoch(place: Place, dataset: str) -> dict[str, Any]:
    """A part of a pass over the images by deepzero at a sparsity of .99; how long fifty passes would take."""
    data = place.scratch / "data"
    config = replace(
        IMAGES["paper"],
        methods=("deepzero",),
        dataset=dataset,
        sparsity=0.99,
        device=place.device,
        threads=1,
    )
    images, batch = 45_000, config.batch
    source = cifar.CIFAR10 if not place.tiny else few_records(cifar.CIFAR10)
    if dataset == "cifar10":
        write_cifar10(data, source)
    if place.tiny:
        images, batch = 64, 16
        config = replace(
            config, network="simple-3700", validation_images=16, test_images=16, batch=batch,
            pruning_directions=2, pruning_images=16,
        )  # fmt: skip
    of_an_epoch = images // batch
    steps = min(STEPS, of_an_epoch)
    config = replace(config, train_images=images, steps=steps, validate_every=steps)
    problem = ImageClassification(config, folder=data)
    with mock.patch.dict(cifar.SOURCES, cifar10=source):  # which says how many records a file must hold
        rows = _row(protocol.finished(problem, place.size, (0,), place.scratch / "runs"))
    for row in rows:
        row["steps"] = steps
        row["hours of 50 epochs"] = EPOCHS * of_an_epoch / steps * row["seconds"] / 3600
    notes = ["Pixels and labels are drawn: the accuracy is chance's."] if dataset == "cifar10" else []
    return {"notes": notes, "rows": rows}


def few_records(source: cifar.CifarSource) -> cifar.CifarSource:
    """The same files with a hundred records each."""
    train, test = (tuple((name, 100) for name, _ in files) for files in (source.train, source.test))
    return replace(source, train=train, test=test)


def write_cifar10(data: Path, source: cifar.CifarSource) -> None:
    """Files of CIFAR-10's binary format, with drawn pixels and as many of each class."""
    generator = np.random.default_rng(0)
    folder = data / source.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (*source.train, *source.test):
        if (folder / name).is_file() and (folder / name).stat().st_size == records * source.record:
            continue
        labels = generator.permutation(np.arange(records) % source.classes).astype(np.uint8)
        pixels = generator.integers(0, 256, (records, source.record - 1), dtype=np.uint8)
        (folder / name).write_bytes(np.concatenate([labels[:, None], pixels], axis=1).tobytes())
