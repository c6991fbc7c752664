"""The image-classification report: the page that holds table and pictures, and the table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.image_classification import evaluation, pictures, tables
from tasks.image_classification.config import Config
from tasks.image_classification.task import evaluation_name
from tasks.report import html_report
from tasks.report.html_report import Details, Facts, Figure, Heading, Paragraph
from tasks.runs.folder import Run
from tasks.runs.result import Result
from zo.pruning import LayerRatios


def write_report(run: Run) -> Path:
    """Draw the pictures of a finished run and write `report.html` beside them."""
    result, config = Result.read(run.path), run.configuration(Config)
    kept = {seed: evaluation.read(run.path / evaluation_name(seed)) for seed in run.seeds}
    found = {seed: methods for seed, (methods, _) in kept.items()}
    first, several = run.seeds[0], len(run.seeds) > 1
    shown = kept[first][1]
    page = html_report.Page(
        title="Image classification from function values",
        lead=tables.sentences(result, config),
        blocks=(
            Facts(tables.facts(result)),
            html_report.Table(tables.HEADERS, tables.results(result), caption=tables.caption(result, config)),
            Figure(
                pictures.bars(found, 1 / len(shown.classes), run.path / "accuracy.png"),
                alt="Bars of the test accuracy of each method",
                caption="Accuracy on test images; the dashed line is what guessing gives."
                + (" Points are seeds, the line is what they span." if several else ""),
            ),
            Heading("Training"),
            Figure(
                pictures.training(run, tables.methods(result), run.path / "training.png"),
                alt="Validation accuracy against steps and against cost, and the loss, of each method",
                caption="Accuracy on validation images against optimiser steps, and against the images that "
                "went through the network; below, the loss of the batches, a running mean. "
                "A backward pass is not counted as images."
                + (" Means of the seeds, and the band that they span." if several else ""),
            ),
            *_ratios(run),
            Heading("What is taken for what"),
            Figure(
                pictures.confusions(found[first], shown.classes, run.path / "confusions.png"),
                alt="Confusion matrices on test images",
                caption=f"Seed {first}: classes by row, what they are taken for by column, "
                f"in parts of the row; the first {pictures.SHOWN} methods at most.",
            ),
            *_examples(run, found[first], shown),
            Heading("The run"),
            Details("Settings", run.config),
            Details("Machine", {**result.machine, **result.versions}),
        ),
        footer=f"{' '.join(result.command)} · started {result.started}, finished {result.finished}",
    )
    return html_report.write(run.path / "report.html", page)


def summary(run: Run) -> Any:  # noqa: ANN401 - a rich renderable
    """The table, for the terminal."""
    from rich.table import Table

    result, config = Result.read(run.path), run.configuration(Config)
    table = Table(caption=tables.caption(result, config), caption_justify="left")
    for header in tables.HEADERS:
        table.add_column(
            header,
            justify="left" if header == "method" else "right",
            no_wrap=header == "method",
            overflow="fold",  # on a narrow terminal digits go on in the next line: none is left out
        )
    for line in tables.results(result):
        table.add_row(*line)
    return table


def _ratios(run: Run) -> Sequence[html_report.Block]:
    """The layer ratios of the first seed, where a method used some."""
    path = run.path / f"layer_ratios-seed-{run.seeds[0]}.json"
    if not path.exists():
        return ()
    saved = json.loads(path.read_text(encoding="utf-8"))
    ratios = LayerRatios.from_dict(saved["ratios"])
    dense = sum(layer.kept for layer in ratios.layers if layer.kept == layer.size)
    return (
        Heading("Where the queries go"),
        Paragraph(
            f"Layer ratios by {ratios.method}, found with {saved['queries']:,} queries before training. "
            f"A step's set has {sum(layer.kept for layer in ratios.layers):,} weights, {dense:,} of them in "
            "layers that are in it as a whole and not shown."
        ),
        Figure(
            pictures.ratios(ratios, run.path / "layer_ratios.png"),
            alt="Bars of the part of each layer in a step's sparse set",
            caption=f"Seed {run.seeds[0]}; the dashed line is the part that is kept of all.",
        ),
    )


def _examples(
    run: Run, found: dict[str, evaluation.Evaluation], shown: evaluation.Examples
) -> Sequence[html_report.Block]:
    method = "deepzero" if "deepzero" in found else next(iter(found))
    return (
        Figure(
            pictures.examples(found[method], shown, run.path / "examples.png"),
            alt=f"Test images with what {method} takes them for",
            caption=f"Test images, and what {method} takes them for: blue where it is right, red with the "
            "class in brackets where not.",
        ),
    )
