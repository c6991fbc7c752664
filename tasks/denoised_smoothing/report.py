"""The denoised-smoothing report: the page that holds tables and pictures, and the table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tasks.denoised_smoothing import curves, published, samples, tables
from tasks.denoised_smoothing.certification.accuracy import plot_certified_accuracy
from tasks.denoised_smoothing.certification.bound import Settings
from tasks.denoised_smoothing.certification.accuracy import Runs, latex_table, lines, markdown_table
from tasks.denoised_smoothing.config import Config
from tasks.denoised_smoothing.limits import read
from tasks.denoised_smoothing.task import FACTS, ONNX, certificates_name
from tasks.report import html_report
from tasks.report.html_report import Details, Facts, Figure, Heading, Paragraph
from tasks.runs import atomic
from tasks.runs.folder import Run
from tasks.runs.result import Result

WHAT = {
    "none": "has no denoiser",
    "mse": "is trained on images alone",
    "fo-ds": "through the classifier by backpropagation, the upper reference",
    "zo-ds": "with differences at the classifier's input",
    "zo-ae-ds": "with differences in a latent space",
    "deepzero": "with differences of the denoiser's own weights",
    "student": "through a network that learns the answers",
}


def write_report(run: Run) -> Path:
    """Draw the pictures of a finished run and write `report.html` beside them, and the table for papers."""
    result, config = Result.read(run.path), run.configuration(Config)
    methods = tables.methods(result)
    found = tables.certificates(run, methods)
    chosen = tables.best_of_families(result)
    facts = json.loads((run.path / FACTS).read_text(encoding="utf-8"))
    costs = {method: round(fmean(r.rows for r in tables.rows_of(result, method))) for method in methods}
    atomic.write_bytes(run.path / "table.md", markdown_table(found, queries=costs).encode())
    atomic.write_bytes(run.path / "table.tex", latex_table(found, queries=costs).encode())
    page = html_report.Page(
        title="Denoised smoothing: a certified defence from queries alone",
        lead=_lead(result, config, found, chosen),
        blocks=(
            Facts(_facts(result, found, chosen)),
            html_report.Table(
                tables.HEADERS, tables.results(result, found), caption=_caption(run, config, result)
            ),
            *_certificates(run, config, found, chosen),
            *_training(run, result, methods),
            *_images(run, chosen),
            Heading("The published experiment"),
            published.table({family: lines({m: found[m]})[0] for family, m in chosen.items()}),
            Paragraph("What differs from it, and why:"),
            html_report.Table(
                ("what", "published", "here", "reason"),
                published.differences(
                    config, tuple(facts["shape"]), facts["certified images"], facts["training images"]
                ),
                prose=True,
            ),
            Heading("The run"),
            Paragraph(_files(run, config)),
            Details("Settings", run.config),
            Details("Data and classifier", facts),
            Details("Machine", {**result.machine, **result.versions}),
        ),
        footer=f"{' '.join(result.command)} · started {result.started}, finished {result.finished}",
    )
    return html_report.write(run.path / "report.html", page)


def summary(run: Run) -> Any:  # noqa: ANN401 - a rich renderable
    """The table, for the terminal."""
    from rich.table import Table

    result, config = Result.read(run.path), run.configuration(Config)
    table = Table(caption=_caption(run, config, result), caption_justify="left")
    shown = tables.HEADERS[:-2]  # what was kept, and seconds, are in the report: 80 columns are few
    for header in shown:
        name = header == "method"
        table.add_column(header, justify="left" if name else "right", no_wrap=name)
    for line in tables.results(result, tables.certificates(run, tables.methods(result))):
        table.add_row(*line[: len(shown)])
    return table


def _lead(result: Result, config: Config, found: Runs, chosen: dict[str, str]) -> list[str]:
    answers = config.answers
    if config.decimals is not None:
        answers += f" rounded to {config.decimals} decimals"
    told = [
        f"A classifier that answers {answers} is defended against l2 attacks: noise of sigma "
        f"{config.sigma:g} is added, a denoiser takes it off, and the classifier votes. "
        + "; ".join(f"{family} {WHAT[family]}" for family in chosen)
        + "."
    ]
    means = {line.method: fmean(line.accuracies[0.25]) for line in lines(found)}
    order = sorted(chosen.values(), key=lambda method: -means[method])
    told.append(
        "Certified accuracy at r = 0.25, of each kind the variant that validation chose: "
        + ", ".join(f"{method} {means[method]:.1f} %" for method in order)
        + "."
    )
    kept = [
        m
        for m in tables.methods(result)
        if any(row.extra["start kept"] for row in tables.rows_of(result, m)) and not read(m).family == "mse"
    ]
    if kept:
        told.append(
            f"The safeguard was at work: {', '.join(kept)} found no weights that the classifier itself does "
            "better with on held-out images than with the start's, in one seed at least, and kept these."
        )
    return told


def _facts(result: Result, found: Runs, chosen: dict[str, str]) -> list[tuple[str, str]]:
    facts = []
    for family in ("none", "mse", "student", "zo-ds", "deepzero", "fo-ds"):
        if family in chosen:
            (line,) = lines({family: found[chosen[family]]})
            rows = tables.rows_of(result, chosen[family])
            asked = fmean(row.rows for row in rows)
            after = f", {asked:,.0f} queries" if asked else ", no query"
            facts.append((f"{fmean(line.accuracies[0.25]):.1f} %", f"certified at r = 0.25: {family}{after}"))
    return facts


def _caption(run: Run, config: Config, result: Result) -> str:
    seeds = len(run.seeds)
    count = int(result.table[0].extra["images"] or 1)  # there may be fewer than were asked for
    settings = Settings(config.sigma, n=config.n, n0=config.n0, alpha=config.alpha)
    caps = settings.cap_warning()
    return (
        f"Certified accuracy in % on {count} test images at l2 radius r, N = {config.n:,}, "
        f"alpha = {config.alpha:g}"
        + (f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ", one seed")
        + f"; one standard error of the images' draw is up to {50 / count**0.5:.1f} points. A query is one "
        "image that the classifier is asked for: training, mu, layer ratios, clean images and validation are "
        "counted, certificates are not. Held out: accuracy in % on noisy images by which weights "
        "are chosen; kept: the step that they are of. ACR: average certified radius."
        + (f" Note: {caps}" if caps else "")
    )


def _certificates(
    run: Run, config: Config, found: Runs, chosen: dict[str, str]
) -> Sequence[html_report.Block]:
    settings = Settings(config.sigma, n=config.n, n0=config.n0, alpha=config.alpha)
    shown = {family: found[method] for family, method in chosen.items()}
    result = Result.read(run.path)
    which = ", ".join(method for family, method in chosen.items() if method != family)
    return (
        Heading("Certified accuracy"),
        Figure(
            plot_certified_accuracy(run.path / "certified_accuracy.png", shown, cap=settings.radius_cap),
            alt="Certified accuracy against the radius, a curve for each method",
            caption=(
                "Share of test images that are right with a certificate of at least that radius. Bands: 95 % "
                "limits of the draw of test images. The dashed line is the largest radius that N can certify."
                + (f" Of each kind the variant that validation chose: {which}." if which else "")
            ),
        ),
        Figure(
            curves.against_queries(result, run.path / "accuracy_against_queries.png"),
            alt="Certified accuracy at radius 0.25 against the queries of training, by method",
            caption=(
                "Certified accuracy at r = 0.25 against what training asked for; methods that ask nothing "
                "are levels. A line joins the budgets of one method."
                + (" Small points are seeds." if len(run.seeds) > 1 else "")
            ),
        ),
        tables.queries(result),
    )


def _training(run: Run, result: Result, methods: Sequence[str]) -> Sequence[html_report.Block]:
    return (
        Heading("Training"),
        Figure(
            curves.training(run, methods, run.path / "training.png"),
            alt="Accuracy on held-out noisy images against the queries of training",
            caption=(
                "Accuracy on noisy held-out images, asked of the classifier itself, against queries. The "
                "first point is the start; the best weights are kept, the start's if none beats it."
                + (" Means of the seeds, and what they span." if len(run.seeds) > 1 else "")
            ),
        ),
    )


def _images(run: Run, chosen: dict[str, str]) -> Sequence[html_report.Block]:
    seed = run.seeds[0]
    found = samples.read(run.path / samples.name(seed))
    return (
        Heading("Images"),
        Figure(
            curves.images(found, chosen, run.path / "images.png"),
            alt="Clean, noisy and denoised images, a row for each method",
            caption=(
                f"Held-out images, seed {seed}. A denoiser trained through a classifier need not look better "
                "than mse; it keeps what that classifier looks at."
            ),
        ),
    )


def _files(run: Run, config: Config) -> str:
    onnx = f"The denoiser that validation chose among those from queries is {ONNX}. " if (
        run.path / ONNX
    ).exists() else ""  # fmt: skip
    example = certificates_name(run.seeds[0], config.methods[-1])
    return (
        f"{onnx}Certificates are tables with the columns of Cohen et al. (2019), such as {example}; beside "
        "each lies what it hangs on, the clamp to [0, 1] between denoiser and classifier included. The table "
        "above is in table.md and table.tex."
    )
