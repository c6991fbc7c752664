"""The problem's own part of the report: certificates, queries, images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tasks.applications.denoised_smoothing.certification import accuracy
from tasks.applications.denoised_smoothing.certification.certificate_file import read_certificates
from tasks.applications.denoised_smoothing.config import Config, is_own, read
from tasks.applications.denoised_smoothing.defence import certificates_name
from tasks.folder import changed_boxes
from tasks.folder.result import Result, Row
from tasks.folder.run import Run
from tasks.report import pictures, run_tables
from tasks.report.findings import Findings
from tasks.report.html_report import Block, Figure, Heading, Paragraph, Table
from tasks.report.method_scores import scores

LINES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


def blocks(config: Config, facts: Findings) -> Sequence[Block]:
    """Return the report's blocks; the table for papers is written beside it, as Markdown and LaTeX."""
    run, result = facts.run, judged(facts.result)
    if not result.table:
        return ()
    runs = certificates(run, result)
    best_methods = best_of_families(result)
    table = accuracy.accuracy_table(runs, queries_of(result))
    run_tables.write(run.path, table, changed_boxes.read(run.path))
    short_table = table.drop(columns=["abstained (%)", "failed queries"])  # in the further figures, too
    return (
        Heading("Certified accuracy"),
        Table(short_table, caption=_caption(config, result)),
        *_kept_starts(result),
        *_pictures(run, config, result, runs, best_methods),
        *_images(facts, best_methods),
    )


def judged(result: Result) -> Result:
    """The result without methods that were not applicable, which have no certificates."""
    refused = {score.method for score in scores(result) if score.refused}
    return replace(result, table=tuple(row for row in result.table if row.method not in refused))


def certificates(run: Run, result: Result) -> accuracy.Runs:
    """The certificates of a run, by method and seed, for the lines of a result."""
    return {
        score.method: [
            read_certificates(run.path / certificates_name(row.seed, row.method)) for row in score.rows
        ]
        for score in scores(result)
    }


def queries_of(result: Result) -> dict[str, int]:
    """Return the queries of each method's training, all counted; the mean over seeds."""
    return {score.method: round(fmean(row.queries for row in score.rows)) for score in scores(result)}


def family_of(method: str) -> str:
    """The family that a method's name begins with; a method that all problems have is its own."""
    return read(method).family if is_own(method) else method


def best_of_families(result: Result) -> dict[str, str]:
    """Return each family's variant with the best validation accuracy, as the box itself was asked."""
    best: dict[str, tuple[float, str]] = {}
    for score in scores(result):
        values = [row.extra.get("validation accuracy") for row in score.rows]
        merit = fmean(float(value) for value in values if value is not None) if any(values) else 0.0
        family = family_of(score.method)
        if family not in best or merit > best[family][0]:
            best[family] = merit, score.method
    return {family: method for family, (_, method) in best.items()}


def against_queries(result: Result, path: Path) -> Path:
    """Certified accuracy at r = .25 of each method against what its training asked for."""
    figure, axes = pictures.figure(6.4, 4.2)
    place = axes[0, 0]
    lines: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in result.table:
        lines[row.method.partition("@")[0]][row.method].append(row)
    counts: dict[str, int] = defaultdict(int)
    for label, budgets in lines.items():
        family, points = family_of(label), []
        for rows in budgets.values():
            seeds = [(row.queries, 100 * (row.value or 0)) for row in rows]
            points.append(tuple(np.mean(seeds, axis=0)))
        look: dict[str, Any] = {"label": label, "color": pictures.colour(family)}
        if not points[0][0]:
            place.axhline(points[0][1], linewidth=1.4, linestyle=(0, (5, 3)), **look)
            continue
        style = LINES[counts[family] % len(LINES)]
        counts[family] += 1
        mark = pictures.looks([family])[family][1]
        place.plot(
            *zip(*sorted(points), strict=True),
            linewidth=1.8,
            marker=mark,
            markersize=6,
            linestyle=style,
            **look,
        )
    place.set(xlabel="queries of training, all counted", ylabel="certified accuracy at r = 0.25 (%)")
    place.set_ylim(0, 103)
    if counts:
        _logarithmic(place)
    pictures.legend_above(place, 4)
    return pictures.save(figure, path)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    low, high = axes.get_xlim()
    between = "25" if high < 100 * low else ""  # over more decades they would run into each other
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:e}"[0] in between else "")


def _caption(config: Config, result: Result) -> str:
    seeds = len(result.seeds)
    count = int(result.table[0].extra["images"] or 1)  # there may be fewer than were asked for
    caps = config.smoothing.cap_warning()
    return (
        f"Certified accuracy in % on {count} test images at l2 radius r, N = {config.n:,}, "
        f"alpha = {config.alpha:g}"
        + (f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ", one seed")
        + f"; one standard error of the images' draw is up to {50 / count**0.5:.1f} points. A query is one "
        "image that the classifier is asked for: training, mu, layer ratios, clean images and validation are "
        "counted, certificates are not. Those by what for are further figures above: they are what a method "
        "trained alone would pay; mu and predictions on clean images are asked once and shared. Validation "
        "accuracy is that on noisy images by which weights are chosen. ACR: average certified radius; noisy: "
        "single noisy test images that are right, before any vote." + (f" Note: {caps}" if caps else "")
    )


def _kept_starts(result: Result) -> Sequence[Block]:
    methods = dict.fromkeys(row.method for row in result.table if row.extra["start kept"] and row.queries)
    if not methods:
        return ()
    sentence = (
        f"The safeguard was at work: {', '.join(methods)} found no weights that the classifier itself does "
        "better with on held-out images than with the start's, in one seed at least, and kept these."
    )
    return (Paragraph(sentence),)


def _pictures(
    run: Run, config: Config, result: Result, runs: accuracy.Runs, chosen: Mapping[str, str]
) -> Sequence[Block]:
    best_runs = {family: runs[method] for family, method in chosen.items()}
    which = ", ".join(method for family, method in chosen.items() if method != family)
    return (
        Figure(
            accuracy.plot_certified_accuracy(
                run.path / "certified_accuracy.png", best_runs, config.smoothing.radius_cap
            ),
            alt="Certified accuracy against the radius, a curve for each method",
            caption=(
                "Share of test images that are right with a certificate of at least that radius. Bands: 95 % "
                "limits of the draw of test images. The dashed line is the largest radius that N can certify."
                + (f" Of each kind the variant that validation chose: {which}." if which else "")
            ),
        ),
        Figure(
            against_queries(result, run.path / "accuracy_against_queries.png"),
            alt="Certified accuracy at radius 0.25 against the queries of training, by method",
            caption=(
                "Certified accuracy at r = 0.25 against what training asked for; methods that ask nothing "
                "are levels. A line joins the budgets of one method, points are means over seeds."
            ),
        ),
    )


def _images(facts: Findings, chosen: Mapping[str, str]) -> Sequence[Block]:
    """Clean, noisy and denoised images: a row each, a column for an image."""
    seed = facts.seeds[0]
    fields = facts.fields[seed]
    first = fields[next(iter(fields))]
    rows = {"clean": first["clean"], "noisy": first["noisy"]}
    rows |= {family: fields[method]["denoised"] for family, method in chosen.items() if family != "none"}
    count = len(first["clean"])
    figure, axes = pictures.figure(0.78 * count + 1.2, 0.8 * len(rows) + 0.1, rows=len(rows), columns=count)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for place, image in zip(line, images, strict=True):
            pictures.image_axes(place)
            picture = np.clip(image.transpose(1, 2, 0), 0, 1)
            place.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ink = "#333333" if name in ("clean", "noisy") else pictures.colour(name)
        line[0].set_ylabel(name, color=ink, fontweight="bold", rotation=0, ha="right", va="center")
    return (
        Heading("Images"),
        Figure(
            pictures.save(figure, facts.run.path / "images.png"),
            alt="Clean, noisy and denoised images, a row for each method",
            caption=(
                f"Held-out images, seed {seed}. A denoiser trained through a classifier need not look better "
                "than mse; it keeps what that classifier looks at."
            ),
        ),
    )
