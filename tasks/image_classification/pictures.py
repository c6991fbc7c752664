"""The pictures of the report: accuracy by method and against its cost, layer ratios, confusions, examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tasks.image_classification.evaluation import Evaluation, Examples
from tasks.report import pictures
from tasks.runs.folder import Run
from zo.pruning import LayerRatios

# Okabe and Ito (2008) for what is compared most; a mark of its own for each, for print without colour
_SIGNS = {
    "deepzero": ("#d55e00", "v"),
    "cge": ("#e69f00", "s"),
    "rge": ("#cc79a7", "D"),
    "sparse-rge": ("#a24b8a", "d"),
    "hybrid": ("#915d2e", "X"),
    "fo": ("#0072b2", "^"),
    "fo-sparse-weight": ("#56b4e9", "<"),
    "fo-sparse-gradient": ("#009e73", ">"),
    "forward-gradient": ("#6152c7", "*"),
    "fa": ("#75b86d", "p"),
    "dfa": ("#8a8a00", "h"),
    "pattern-search": ("#606060", "o"),
    "align-ada": ("#849ef7", "P"),
}
INK = "#333333"
SHOWN = 4  # confusions side by side
Found = Mapping[int, Mapping[str, Evaluation]]  # by seed and method


def sign(label: str, place: int = 0) -> tuple[str, str]:
    """Colour and mark of a method; of anything else, those of the method at a place in the table."""
    if label in _SIGNS:
        return _SIGNS[label]
    return list(_SIGNS.values())[place % len(_SIGNS)]


def bars(found: Found, chance: float, path: Path) -> Path:
    """Test accuracy of each method: mean, range and every seed; and what guessing gives."""
    methods = list(next(iter(found.values())))
    made, axes = pictures.figure(6.4, 0.42 * len(methods) + 1.0)
    place: Axes = axes[0, 0]
    for line, method in enumerate(methods):
        seeds = 100 * np.array([each[method].accuracy for each in found.values()])
        if not np.isfinite(seeds).all():
            place.text(0, line, " not finite", va="center", fontsize=9, color=INK)
            continue
        place.barh(line, seeds.mean(), 0.62, color=sign(method)[0], linewidth=0)
        if len(seeds) > 1:
            place.plot([seeds.min(), seeds.max()], [line, line], color=INK, linewidth=1)
            place.plot(seeds, np.full(len(seeds), line), "o", color=INK, markersize=3)
        place.annotate(
            f"{seeds.mean():.1f}", (seeds.max(), line), (4, 0), textcoords="offset points",
            va="center", fontsize=9, color=INK,
        )  # fmt: skip
    place.axvline(100 * chance, color="#999999", linestyle="--", linewidth=1)
    place.set_yticks(range(len(methods)), methods)
    place.set_ylim(len(methods) - 0.5, -0.5)
    place.grid(visible=False, axis="y")
    place.margins(x=0.1)
    place.set_xlim(left=0)
    place.set_xlabel("test accuracy (%)")
    return pictures.save(made, path)


def training(run: Run, methods: Sequence[str], path: Path) -> Path:
    """Validation accuracy against steps and against cost, and the loss in training; the mean over seeds."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in run.metrics():
        lines[line["stage"]].append(line)
    made, axes = pictures.figure(6.4, 8.8, rows=3, columns=1)
    for method in methods:
        seeds = [lines[f"seed-{seed}/{method}"] for seed in run.seeds]
        checks = [[line for line in seed if "accuracy" in line] for seed in seeds]
        steps = np.array([line["step"] for line in checks[0]])
        accuracy = 100 * np.array([[line["accuracy"] for line in seed] for seed in checks])
        curve(axes[0, 0], steps, accuracy, method)
        rows = np.array([line["images"] for line in seeds[0] if "images" in line])
        if len(rows):
            later = steps > 0
            curve(axes[1, 0], rows[steps[later] - 1], accuracy[:, later], method)
        losses = np.array([[line["loss"] for line in seed if "loss" in line] for seed in seeds])
        curve(axes[2, 0], 1 + np.arange(losses.shape[1]), smooth(losses), method, marks=False)
    for place, across, up in (
        (axes[0, 0], "optimiser steps", "validation accuracy (%)"),
        (axes[1, 0], "images through the network in training", "validation accuracy (%)"),
        (axes[2, 0], "optimiser steps", "loss in training (nats)"),
    ):
        place.set(xlabel=across, ylabel=up)
    for place in (axes[0, 0], axes[2, 0]):
        place.xaxis.get_major_locator().set_params(integer=True)  # half a step is none
    axes[1, 0].set_xscale("log")
    legend(axes[0, 0])
    return pictures.save(made, path)


def curve(axes: Axes, across: np.ndarray, seeds: np.ndarray, label: str, *, marks: bool = True) -> None:
    """The mean of `seeds` `(seeds, points)` and the band that they span, against `across` `(points,)`."""
    colour, mark = sign(label, len(axes.lines))
    every = max(1, len(across) // 8)
    axes.plot(
        across, seeds.mean(axis=0), label=label, color=colour, linewidth=1.7,
        marker=mark if marks else "", markersize=4.5, markevery=every,
    )  # fmt: skip
    if len(seeds) > 1:
        axes.fill_between(across, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def legend(axes: Axes, columns: int = 3) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.6, columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and those before it, up to a twentieth of them, along the last axis."""
    width = max(1, values.shape[-1] // 20)
    sums = np.cumsum(np.concatenate([np.zeros((*values.shape[:-1], 1)), values], axis=-1), axis=-1)
    last = np.arange(1, values.shape[-1] + 1)
    first = np.maximum(0, last - width)
    return (sums[..., last] - sums[..., first]) / (last - first)


def ratios(given: LayerRatios, path: Path) -> Path:
    """The part of each scored layer that a step's set holds, with the number of weights kept."""
    layers = [layer for layer in given.layers if layer.kept < layer.size] or list(given.layers)
    made, axes = pictures.figure(6.4, 0.24 * len(layers) + 1.0)
    place: Axes = axes[0, 0]
    parts = [100 * layer.kept / layer.size for layer in layers]
    place.barh(range(len(layers)), parts, 0.7, color=sign("deepzero")[0], linewidth=0)
    for line, layer in enumerate(layers):
        place.annotate(
            f"{layer.kept:,} of {layer.size:,}", (parts[line], line), (4, 0), textcoords="offset points",
            va="center", fontsize=8, color=INK,
        )  # fmt: skip
    place.axvline(100 * (1 - given.sparsity), color="#999999", linestyle="--", linewidth=1)
    place.set_yticks(range(len(layers)), [layer.name for layer in layers])
    place.set_ylim(len(layers) - 0.5, -0.5)
    place.grid(visible=False, axis="y")
    place.margins(x=0.22)
    place.set_xlim(left=0)
    place.set_xlabel("part of the layer in a step's set (%)")
    return pictures.save(made, path)


def confusions(found: Mapping[str, Evaluation], classes: Sequence[str], path: Path) -> Path:
    """Which class is taken for which, of the first few methods; rows add up to 100 %."""
    shown = list(found)[:SHOWN]
    made, axes = pictures.figure(3.4 * min(2, len(shown)), 3.5 * -(-len(shown) // 2), -(-len(shown) // 2),
                                 min(2, len(shown)))  # fmt: skip
    for place in axes.flat[len(shown) :]:
        place.set_visible(False)
    for place, method in zip(axes.flat, shown, strict=False):
        counts = found[method].confusion.double().numpy()
        parts = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        pictures.image_axes(place)
        place.imshow(parts, cmap="Blues", vmin=0, vmax=100)
        place.set_title(f"{method}: {100 * found[method].accuracy:.1f} %")
        if len(classes) <= 12:
            place.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=7)
            place.set_yticks(range(len(classes)), classes, fontsize=7)
        place.set_xlabel("taken for", fontsize=8)
        place.set_ylabel("is", fontsize=8)
    return pictures.save(made, path)


def examples(found: Evaluation, shown: Examples, path: Path) -> Path:
    """Test images with what they were taken for: blue where that is right, red with the class where not."""
    columns = 8
    rows = -(-len(shown.labels) // columns)
    made, axes = pictures.figure(6.4, 1.05 * rows + 0.1, rows, columns)
    for place in axes.flat[len(shown.labels) :]:
        place.set_visible(False)
    for place, pixels, label, taken in zip(
        axes.flat, shown.pixels, shown.labels.tolist(), found.taken.tolist(), strict=False
    ):
        pictures.image_axes(place)
        picture = pixels.permute(1, 2, 0).numpy()
        place.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray_r")
        right = label == taken
        said = shown.classes[taken] if right else f"{shown.classes[taken]}\n({shown.classes[label]})"
        place.set_title(said, fontsize=7, color="#0072b2" if right else "#b00000", pad=2)
    return pictures.save(made, path)
