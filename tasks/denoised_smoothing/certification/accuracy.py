"""What certificates say together: certified accuracy and ACR, tables for papers, curves over the radius."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray
from scipy import stats

from tasks.denoised_smoothing.certification.algorithm import ABSTAIN, Certificate
from tasks.denoised_smoothing.certification.bound import RADII
from tasks.denoised_smoothing.errors import CertificateFileError
from tasks.report import pictures

Floats = NDArray[np.float64]
Radii = float | Sequence[float] | Floats


def certified_accuracy(certificates: Sequence[Certificate], radii: Radii) -> Floats:
    """The share of images that are predicted right with a certificate of at least each radius.

    Args:
        certificates: of the images; abstentions are wrong at every radius, 0 included.
        radii: any number of them, in the images' units.

    Returns:
        One share for each radius, as Cohen et al. (2019) report it: a lower bound of the smoothed
        classifier's accuracy under any perturbation of that l2 norm.
    """
    radius, correct = _columns(certificates)
    wanted = np.atleast_1d(np.asarray(radii, dtype=float))
    return (correct & (radius >= wanted[:, None])).mean(axis=1)


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

    What another draw of test images might have given, point by point; it says nothing on training, of
    which other seeds tell.

    Args:
        shares: of `images`.
        images: how many there are.
        confidence: of each interval.
    """
    hits = np.rint(np.asarray(shares, dtype=float) * images)
    tail = (1 - confidence) / 2
    # At no hit and at all hits the beta distribution has a parameter of 0, and the limits are 0 and 1.
    low = np.where(hits == 0, 0.0, stats.beta.ppf(tail, np.maximum(hits, 1), images - hits + 1))
    high = np.where(hits == images, 1.0, stats.beta.ppf(1 - tail, hits + 1, np.maximum(images - hits, 1)))
    return low, high


def _columns(certificates: Sequence[Certificate]) -> tuple[Floats, NDArray[np.bool_]]:
    if not certificates:
        raise CertificateFileError("certificates: expected at least one, got none. Certify an image first.")
    radius = np.array([one.radius for one in certificates], dtype=float)
    return radius, np.array([one.correct for one in certificates], dtype=bool)


# The certificates of each method: one list for each seed with which it was trained.
Runs = Mapping[str, Sequence[Sequence[Certificate]]]


@dataclass(frozen=True)
class Line:
    """What a method came to, each figure once for each seed.

    Attributes:
        method: its name.
        accuracies: certified accuracy in per cent, by radius.
        radius: ACR.
        abstained: share of images on which nothing is said, in per cent.
        failed: queries that came back without an answer.
        images: of each seed.
    """

    method: str
    accuracies: Mapping[float, Sequence[float]]
    radius: Sequence[float]
    abstained: Sequence[float]
    failed: int
    images: int


def lines(runs: Runs, radii: Sequence[float] = RADII) -> list[Line]:
    """One line for each method, in their order."""
    found = []
    for method, seeds in runs.items():
        by_seed = [100 * certified_accuracy(certificates, radii) for certificates in seeds]
        found.append(
            Line(
                method,
                {radius: [float(one[k]) for one in by_seed] for k, radius in enumerate(radii)},
                [average_certified_radius(certificates) for certificates in seeds],
                [100 * fmean(one.predict == ABSTAIN for one in certificates) for certificates in seeds],
                sum(one.failed for certificates in seeds for one in certificates),
                len(seeds[0]),
            )
        )
    return found


def markdown_table(
    runs: Runs, radii: Sequence[float] = RADII, queries: Mapping[str, int] | None = None
) -> str:
    """Certified accuracy (%) by radius, ACR and abstentions (%) as a Markdown table.

    Args:
        runs: certificates by method and seed; over several seeds mean and standard deviation are shown.
        radii: the columns.
        queries: training queries of each method, for a column of them.
    """
    head, body = _cells(runs, radii, queries, "±")
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body]) + "\n"


def latex_table(runs: Runs, radii: Sequence[float] = RADII, queries: Mapping[str, int] | None = None) -> str:
    """The same as a LaTeX tabular with the rules of `booktabs`; the best at each radius is bold."""
    head, body = _cells(runs, radii, queries, r"$\pm$", bold=r"\textbf{%s}")
    escaped = [[_latex(cell) for cell in line[:1]] + line[1:] for line in body]
    head = [re.sub(r"^r = (\S+)", r"$r = \1$", cell).replace("%", r"\%") for cell in head]
    rows = [" & ".join(line) + r" \\" for line in escaped]
    columns = "l" + "r" * (len(head) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule", *rows,
         r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


def _cells(
    runs: Runs, radii: Sequence[float], queries: Mapping[str, int] | None, sign: str, bold: str | None = None
) -> tuple[list[str], list[list[str]]]:
    found = lines(runs, radii)
    head = ["method", *(["queries"] if queries is not None else [])]
    head += [f"r = {radius:g} (%)" for radius in radii] + ["ACR", "abstained (%)", "failed queries"]
    best = {radius: max(fmean(line.accuracies[radius]) for line in found) for radius in radii}
    body = []
    for line in found:
        cells = [line.method]
        if queries is not None:
            cells.append(f"{queries[line.method]:,}" if line.method in queries else "-")
        for radius in radii:
            values = line.accuracies[radius]
            text = _spread(values, ".1f", sign)
            cells.append(bold % text if bold and fmean(values) == best[radius] > 0 else text)
        cells += [_spread(line.radius, ".3f", sign), _spread(line.abstained, ".1f", sign), f"{line.failed:,}"]
        body.append(cells)
    return head, body


def _spread(values: Sequence[float], form: str, sign: str) -> str:
    mean = format(fmean(values), form)
    return mean if len(values) < 2 else f"{mean} {sign} {format(stdev(values), form)}"


def _latex(text: str) -> str:
    return text.replace("_", r"\_").replace("&", r"\&")


STYLES = {"none": (0, (1, 1.4)), "fo-ds": (0, (5, 2))}  # the lower and the upper reference
# Of the first, second, ... method of a family in one figure, such as zo-ds:cge and zo-ds:rge
_VARIANTS = ("-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1)), (0, (8, 3)))
_POINTS = 600


def colour(method: str, variant: int = 0) -> str:
    """The colour of a method, the same in every figure: its family's, paler for its later variants.

    Args:
        method: its name; directions and a budget behind ":" and "@" are no part of the family.
        variant: how many of its family were before it.
    """
    red, green, blue = to_rgb(pictures.colour(pictures.family(method)))
    paler = 0.75 ** min(variant, 3)
    return to_hex((1 - (1 - red) * paler, 1 - (1 - green) * paler, 1 - (1 - blue) * paler))


def appearances(methods: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Colour and line style of each method of one figure, no two alike."""
    seen: Counter[str] = Counter()
    found = {}
    for method in methods:
        family = pictures.family(method)
        style = STYLES.get(method, _VARIANTS[seen[family] % len(_VARIANTS)])
        found[method] = (colour(method, seen[family]), style)
        seen[family] += 1
    return found


def certified_accuracy_axes(
    axes: Axes, runs: Runs, *, cap: float | None = None, largest: float | None = None, band: bool = True
) -> None:
    """Draw the curve of each method: mean over seeds, and how sure the number of images makes it.

    Args:
        axes: where to draw.
        runs: certificates by method and seed.
        cap: the largest radius that N can certify (`Settings.radius_cap`), marked by a line; None for none.
        largest: where the radii end; a little beyond the cap or the largest certificate if None.
        band: whether to shade the two-sided 95 % Clopper-Pearson limits, point by point, of as many images
            as one seed has; they stand for the draw of test images, not for that of training.
    """
    certificates = [one for seeds in runs.values() for each in seeds for one in each]
    reached = max((one.radius for one in certificates if one.correct), default=0.0)
    end = largest if largest is not None else 1.06 * max(reached, cap or 0.0, 1e-3)
    looks = appearances(runs)
    for method, seeds in runs.items():
        hue, style = looks[method]
        # the very radii at which a curve falls, and the number behind each: a step stays a step
        own = np.unique([one.radius for each in seeds for one in each if one.correct])
        grid = np.unique(np.concatenate([np.linspace(0, end, _POINTS), own, np.nextafter(own, np.inf)]))
        grid = grid[grid <= end]
        curves = np.stack([certified_accuracy(each, grid) for each in seeds])
        mean = curves.mean(axis=0)
        axes.plot(grid, 100 * mean, label=method, color=hue, linewidth=1.8, linestyle=style)
        if band:  # not beyond the cap, where zero is no matter of chance
            inside = grid <= (end if cap is None else cap)
            low, high = accuracy_band(mean[inside], len(seeds[0]))
            axes.fill_between(grid[inside], 100 * low, 100 * high, color=hue, alpha=0.12, linewidth=0)
    if cap is not None:
        axes.axvline(cap, color="#999999", linewidth=1.0, linestyle=(0, (2, 2)))
        axes.annotate(
            "cap of N", (cap, 1.0), xycoords=("data", "axes fraction"), xytext=(-3, -3),
            textcoords="offset points", ha="right", va="top", fontsize=8, color="#777777", rotation=90,
        )  # fmt: skip
    axes.set_xlim(0, end)
    axes.set_ylim(0, 100)
    axes.set_xlabel("l2 radius (white is 1 above black)")
    axes.set_ylabel("certified accuracy (%)")
    pictures.legend_above(axes, 4)


def plot_certified_accuracy(
    path: Path, runs: Runs, *, cap: float | None = None, largest: float | None = None, band: bool = True
) -> Path:
    """Write the figure as PNG; arguments as of `certified_accuracy_axes`."""
    made, axes = pictures.figure(width=6.4, height=4.0)
    certified_accuracy_axes(axes[0, 0], runs, cap=cap, largest=largest, band=band)
    return pictures.save(made, path)
