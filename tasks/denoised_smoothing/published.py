"""The published experiment: its certified accuracies, and what keeps a run from being it.

Chen et al., "DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training", ICLR 2024: table of the
black-box defence, ImageNet-10, sigma .25. FO-DS is denoised smoothing of Salman et al. (2020), ZO-AE-DS that
of Zhang et al. (2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from tasks.denoised_smoothing.certification.accuracy import Line
from tasks.denoised_smoothing.certification.bound import RADII
from tasks.denoised_smoothing.config import Config
from tasks.report import html_report

SOURCE = "Chen et al. (2024), DeepZero, black-box defence on ImageNet-10"
ACCURACIES: Mapping[str, tuple[float, float, float, float]] = {
    "fo-ds": (89.33, 81.67, 68.87, 49.80),
    "zo-ae-ds": (63.60, 52.80, 43.13, 32.73),
    "deepzero": (86.02, 76.61, 61.80, 43.05),
}  # per cent at RADII
NAMES = {"fo-ds": "FO-DS", "zo-ae-ds": "ZO-AE-DS", "deepzero": "DeepZero"}


def table(lines: Mapping[str, Line]) -> html_report.Table:
    """Published figures, and ours of the same family beside them.

    Args:
        lines: ours, by family.
    """
    rows = []
    for family, figures in ACCURACIES.items():
        own = lines.get(family)
        here = "-"
        if own is not None:
            here = " / ".join(f"{fmean(own.accuracies[r]):.1f}" for r in RADII)
        rows.append((NAMES[family], " / ".join(f"{figure:.2f}" for figure in figures), here))
    radii = " / ".join(f"{r:g}" for r in RADII)
    return html_report.Table(
        ("method", f"published (%) at r = {radii}", "here (%)"),
        rows,
        caption=f"Published: {SOURCE}. Certified accuracy at radius r; what differs is in the next table.",
    )


def differences(config: Config, shape: tuple[int, ...], images: int, train: int) -> list[tuple[str, ...]]:
    """What differs, as published and here, and why: rows of four cells.

    Args:
        config: of the run.
        shape: of an image.
        images: that were certified.
        train: that were trained on.
    """
    rows = [
        (
            "images",
            "ImageNet-10, 224 x 224 in colour",
            f"{train:,} of {shape[1]} x {shape[2]}, {'colour' if shape[0] == 3 else 'grey'}",
            "a set that needs no download and minutes; --preset paper takes yours",
        ),
        (
            "classifier",
            "ResNet-50, frozen",
            config.box,
            "the noise has to fool it, or all methods are alike: the embedded pipelines are fragile",
        ),
        (
            "denoiser",
            "DnCNN, depth 17, width 64; for DeepZero sparse, by the layer ratios of ZO-GraSP",
            f"DnCNN, depth {config.depth}, width {config.width}, {config.coordinates} weights a step",
            "coordinate-wise gradients take a query a weight",
        ),
        (
            "start of the methods",
            "each method's own",
            "the mse denoiser" if config.start == "mse" else "random weights",
            "images cost no query, so every method should start from what they teach",
        ),
        (
            "queries",
            "each method's own; the figures are not held to equal queries here",
            "equal for all zeroth-order methods, mu and validation counted",
            "the comparison that someone who pays for queries needs",
        ),
        (
            "decoder of ZO-AE-DS",
            "of photographs",
            f"{'convolutions' if config.latent_convolutions else 'linear layers'}, "
            f"{config.latent} latent {'channels' if config.latent_convolutions else 'numbers'}",
            "digits of 64 pixels fit into a few numbers, and a decoder of these cleans images by itself; of "
            "photographs it loses detail, so that the order may turn round",
        ),
        (
            "certificates",
            "n0 = 100, alpha = .001",
            f"N = {config.n:,}, n0 = {config.n0}, alpha = {config.alpha:g}, {images} images",
            "N caps the radius; the images' number gives the error of the table "
            f"(up to {50 / math.sqrt(max(1, images)):.1f} points, one standard error)",
        ),
    ]
    return [row for row in rows if row[1] != row[2]]
