"""Summaries of certificates: certified accuracy and ACR, tables for papers, curves over the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.applications.denoised_smoothing.certification.algorithm import ABSTAIN, Certificate
from tasks.applications.denoised_smoothing.certification.bound import RADII
from tasks.errors import DataError

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Radii = float | Sequence[float] | Floats


def certified_accuracy(certificates: Sequence[Certificate], radii: Radii) -> Floats:
    """The share of images that are predicted right with a certificate of at least each radius.

    Args:
        certificates: the certificates of the images; abstentions are wrong at every radius, 0 included.
        radii: any number of them, in the images' units.

    Returns:
        One share for each radius, as Cohen et al. (2019) report it: a lower bound of the smoothed
        classifier's accuracy under any perturbation of that l2 norm.
    """
    radius, correct = _columns(certificates)
    radius_array = np.atleast_1d(np.asarray(radii, dtype=float))
    return (correct & (radius >= radius_array[:, None])).mean(axis=1)


def average_certified_radius(certificates: Sequence[Certificate]) -> float:
    """ACR: the mean over all images of the certified radius, 0 where wrong (Zhai et al. 2020).

    It is the area under the curve of certified accuracy.
    """
    radius, correct = _columns(certificates)
    return float((radius * correct).mean())


def accuracy_band(
    shares: Floats | Sequence[float], images: int, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Two-sided Clopper-Pearson limits of shares that so many images gave.

    They show the spread over other draws of test images, point by point. They show nothing of the spread over
    trainings, for which there are other seeds.

    Args:
        shares: the shares of `images`.
        images: how many images there are.
        confidence: the confidence of each interval.
    """
    from scipy import stats

    hits = np.rint(np.asarray(shares, dtype=float) * images)
    tail = (1 - confidence) / 2
    # At no hit and at all hits the beta distribution has a parameter of 0, and the limits are 0 and 1.
    low = np.where(hits == 0, 0.0, stats.beta.ppf(tail, np.maximum(hits, 1), images - hits + 1))
    high = np.where(hits == images, 1.0, stats.beta.ppf(1 - tail, hits + 1, np.maximum(images - hits, 1)))
    return low, high


def _columns(certificates: Sequence[Certificate]) -> tuple[Floats, NDArray[np.bool_]]:
    if not certificates:
        raise DataError("certificates: expected at least one, got none. Certify an image first.")
    radius = np.array([one.radius for one in certificates], dtype=float)
    return radius, np.array([one.correct for one in certificates], dtype=bool)


# The certificates of each method: one list for each seed with which it was trained.
Runs = Mapping[str, Sequence[Sequence[Certificate]]]


def accuracy_table(
    runs: Runs, queries: Mapping[str, int] | None = None, radii: Sequence[float] = RADII
) -> pandas.DataFrame:
    """Certified accuracy (%) by radius, ACR, accuracy on noisy copies and abstentions (%), a line a method.

    Args:
        runs: certificates by method and seed; over several seeds mean ± standard deviation is shown.
        queries: training queries of each method, for a column of them.
        radii: the columns.
    """
    import pandas

    lines = []
    for method, seeds in runs.items():
        shares = 100 * np.stack([certified_accuracy(certificates, radii) for certificates in seeds])
        abstained = [100 * fmean(one.predict == ABSTAIN for one in certificates) for certificates in seeds]
        line = {"method": method}
        if queries is not None:
            line["queries"] = f"{queries[method]:,}" if method in queries else "-"
        line |= {
            f"r = {radius:g} (%)": spread(of_seeds, ".1f")
            for radius, of_seeds in zip(radii, shares.T, strict=True)
        }
        line["ACR"] = spread([average_certified_radius(certificates) for certificates in seeds], ".3f")
        noisy = [100 * fmean(one.hits / one.n for one in certificates) for certificates in seeds]
        line["noisy (%)"] = spread(noisy, ".1f")  # of single copies, before any vote
        line["abstained (%)"] = spread(abstained, ".1f")
        line["failed queries"] = f"{sum(one.failed for certificates in seeds for one in certificates):,}"
        lines.append(line)
    return pandas.DataFrame(lines)


def spread(values: Sequence[float] | Floats, form: str) -> str:
    """Mean ± standard deviation over seeds."""
    mean = format(fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {format(stdev(values), form)}"


_POINTS = 600


def plot_certified_accuracy(path: Path, runs: Runs, cap: float) -> Path:
    """Draw the curve of each method, the mean over seeds, and write the figure as PNG.

    The bands are the two-sided 95 % Clopper-Pearson limits, point by point, of as many images as one seed
    has; they stand for the draw of test images, not for that of training.

    Args:
        path: the file.
        runs: certificates by method and seed.
        cap: the largest radius that N can certify (`Settings.radius_cap`), marked by a line.
    """
    from tasks.applications.denoised_smoothing.looks import LOOKS
    from tasks.report import pictures

    with pictures.palette(LOOKS):
        hues = {method: pictures.colour(method) for method in runs}
    figure, (row,) = pictures.figure(width=6.4, height=4.0)
    axes = row[0]
    certificates = [one for seeds in runs.values() for of_seed in seeds for one in of_seed]
    end = 1.06 * max([cap, *(one.radius for one in certificates if one.correct)])
    for method, seeds in runs.items():
        hue = hues[method]
        # the very radii at which a curve falls, and the number behind each: a step stays a step
        steps = np.unique([one.radius for of_seed in seeds for one in of_seed if one.correct])
        grid = np.unique(np.concatenate([np.linspace(0, end, _POINTS), steps, np.nextafter(steps, np.inf)]))
        grid = grid[grid <= end]
        mean = np.mean([certified_accuracy(of_seed, grid) for of_seed in seeds], axis=0)
        axes.plot(grid, 100 * mean, label=method, color=hue, linewidth=1.8)
        inside = grid <= cap  # beyond it zero is no matter of chance
        low, high = accuracy_band(mean[inside], len(seeds[0]))
        axes.fill_between(grid[inside], 100 * low, 100 * high, color=hue, alpha=0.12, linewidth=0)
    axes.axvline(cap, color="#999999", linewidth=1.0, linestyle=(0, (2, 2)))
    axes.annotate(
        "cap of N", (cap, 1.0), xycoords=("data", "axes fraction"), xytext=(-3, -3),
        textcoords="offset points", ha="right", va="top", fontsize=8, color="#777777", rotation=90,
    )  # fmt: skip
    axes.set(xlim=(0, end), ylim=(0, 100))
    axes.set(xlabel="l2 radius (white is 1 above black)", ylabel="certified accuracy (%)")
    pictures.legend_above(axes, 4)
    return pictures.save(figure, path)
