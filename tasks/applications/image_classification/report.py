"""The problem's own part of the report: sentences on the accuracies, and pictures of classified images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tasks.applications.image_classification.config import Config
from tasks.applications.image_classification.data.loading import CLASSES
from tasks.applications.image_classification.sparse_set import ratios_name
from tasks.folder.result import Result
from tasks.methods import kept_ratios
from tasks.report import pictures
from tasks.report.findings import Findings
from tasks.report.html_report import Block, Figure, Heading, Paragraph
from tasks.report.method_scores import scores
from zo.estimators.ratios import LayerRatios

SHOWN = 4  # confusions side by side


def blocks(findings: Findings, config: Config) -> Sequence[Block]:
    """Return the blocks that the shared report lacks.

    Args:
        findings: The finished run, with the arrays of `ImageClassification.evaluate`.
        config: Its settings.
    """
    folder, first = findings.run.path, findings.seeds[0]
    fields, classes = findings.fields[first], CLASSES[config.dataset]
    pictured = "deepzero" if "deepzero" in fields else next(iter(fields))
    return (
        *map(Paragraph, sentences(findings.result, config)),
        *_ratios(folder, first),
        Heading("What is taken for what"),
        Figure(
            confusions(fields, classes, folder / "confusions.png"),
            alt="Confusion matrices on test images",
            caption=f"Seed {first}: classes by row, what they are taken for by column, in parts of the row; "
            f"the first {SHOWN} methods at most.",
        ),
        Figure(
            examples(fields[pictured], classes, folder / "examples.png"),
            alt=f"Test images with what {pictured} takes them for",
            caption=f"Test images, and what {pictured} takes them for: blue where it is right, red with the "
            "class in brackets where not.",
        ),
    )


def sentences(result: Result, config: Config) -> list[str]:
    """Describe the training, the counting, and the losses due to differences and to sets."""
    weights = result.table[0].extra["weights"]
    lines = [
        f"{config.network} with {weights:,} weights, trained from scratch on {config.dataset}: "
        f"{config.steps} batches of {config.batch}. Queries are perturbed losses; those of the layer ratios "
        "are charged to each method that uses them. Rows are images that went forward through the network in "
        "training."
    ]
    means = {score.method: score.mean for score in scores(result)}
    zero_order, exact = means.get("deepzero", nan), means.get("fo-sparse-gradient", nan)
    if exact and isfinite(zero_order / exact):
        lines.append(
            f"From function values alone, deepzero has {zero_order / exact:.2f} of the accuracy that "
            "exact gradients on the same sets give."
        )
    return lines


def ratios(kept: LayerRatios, path: Path) -> Path:
    """The part of each scored layer that a step's set holds, with the number of weights kept."""
    layers = [layer for layer in kept.layers if layer.kept < layer.size] or list(kept.layers)
    figure, axes = pictures.figure(6.4, 0.24 * len(layers) + 1.0)
    place: Axes = axes[0, 0]
    parts = [100 * layer.kept / layer.size for layer in layers]
    place.barh(range(len(layers)), parts, 0.7, color=pictures.colour("deepzero"), linewidth=0)
    for line, layer in enumerate(layers):
        words, at = f"{layer.kept:,} of {layer.size:,}", (parts[line], line)
        place.annotate(
            words, at, (4, 0), textcoords="offset points", va="center", fontsize=8, color="#333333"
        )
    place.axvline(100 * (1 - kept.sparsity), color="#999999", linestyle="--", linewidth=1)
    place.set_xlabel("part of the layer in a step's set (%)")
    place.set_yticks(range(len(layers)), [layer.name for layer in layers])
    place.set_ylim(len(layers) - 0.5, -0.5)
    place.grid(visible=False, axis="y")
    place.margins(x=0.22)
    place.set_xlim(left=0)
    return pictures.save(figure, path)


def confusions(fields: Mapping[str, Mapping[str, Any]], classes: Sequence[str], path: Path) -> Path:
    """Plot the confusion of classes, of the first few methods; rows add up to 100 %."""

    def draw(axes: Axes, arrays: Mapping[str, Any]) -> None:
        counts = arrays["confusion"].astype(float)
        pictures.image_axes(axes)
        parts = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axes.imshow(parts, cmap="Blues", vmin=0, vmax=100)
        axes.set_title(f"{axes.get_title()}: {100 * counts.trace() / counts.sum():.1f} %")
        if len(classes) <= 12:
            axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=7)
            axes.set_yticks(range(len(classes)), classes, fontsize=7)

    first_fields = dict(list(fields.items())[:SHOWN])
    figure = pictures.panels(first_fields, draw, columns=2, size=(3.4, 3.5), xlabel="taken for", ylabel="is")
    return pictures.save(figure, path)


def examples(fields: Mapping[str, Any], classes: Sequence[str], path: Path) -> Path:
    """Test images with what they were taken for: blue where that is right, red with the class where not."""

    def draw(axes: Axes, one: Mapping[str, Any]) -> None:
        pictures.image_axes(axes)
        axes.imshow(one["examples"].transpose(1, 2, 0).squeeze(), cmap="gray_r")
        label, prediction = classes[int(one["labels"])], classes[int(one["taken"])]
        right = label == prediction
        title = prediction if right else f"{prediction}\n({label})"
        axes.set_title(title, fontsize=7, color="#0072b2" if right else "#b00000", pad=2)

    names = ("examples", "labels", "taken")
    panels = {str(row): {name: fields[name][row] for name in names} for row in range(len(fields["labels"]))}
    return pictures.save(pictures.panels(panels, draw, columns=8, size=(0.8, 1.05)), path)


def _ratios(folder: Path, seed: int) -> Sequence[Block]:
    """The layer ratios of a seed, where a method used some."""
    path = folder / f"{ratios_name(seed)}.json"
    if not path.exists():
        return ()
    layers, queries = kept_ratios.read(path)
    dense = sum(layer.kept for layer in layers.layers if layer.kept == layer.size)
    return (
        Heading("Where the queries go"),
        Paragraph(
            f"Layer ratios by {layers.method}, computed with {queries:,} queries before training. "
            f"A step's set has {sum(layer.kept for layer in layers.layers):,} weights, {dense:,} of them in "
            "layers that are in it as a whole and not shown."
        ),
        Figure(
            ratios(layers, folder / "layer_ratios.png"),
            alt="Bars of the part of each layer in a step's sparse set",
            caption=f"Seed {seed}; the dashed line is the part that is kept of all.",
        ),
    )
