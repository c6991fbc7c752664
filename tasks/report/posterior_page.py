"""`report.html` of a sampling: the trust in its draws, their figures, and their cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blackbox.words import counted
from tasks.report import html_report, pictures
from tasks.report.html_report import Details, Figure, Heading, Paragraph, Table
from zo.posterior.inference_data import arviz

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MadeFigure

NAME = "report.html"
SHOWN, PAIRED, LISTED = 4, 3, 20  # unknowns in traces, in pairs, in the table
ENOUGH, MIXED = 400, 1.01  # effective samples and R-hat, as Vehtari et al. (2021) ask for
ACCEPTED = 0.3  # below, the model is told to be far from the box
COLUMNS = {
    "mean": "mean",
    "sd": "sd",
    "hdi_3%": "3 %",
    "hdi_97%": "97 %",
    "mcse_mean": "error of mean",
    "ess_bulk": "effective",
    "ess_tail": "in the tails",
    "r_hat": "R-hat",
}


def write(
    folder: Path,
    data: Any,
    *,
    title: str,
    about: str,
    asked: int,
    causes: Mapping[str, int],
    machine: Mapping[str, Any],
    footer: str,
) -> Path:
    """Write the page and its pictures.

    Args:
        folder: The folder of the page.
        data: The result of `zo.sample`, with names for the dimension `unknown` of `x`.
        title: The title of the page.
        about: A description of the posterior.
        asked: The number of rows that were to be run.
        causes: The causes of failed rows in this process, with their numbers.
        machine: Machine and versions.
        footer: The command that started it.
    """
    summary = summarised(data)
    with _quiet():
        figures = [
            Figure(pictures.save(picture, folder / f"{name}.png"), alt=caption, caption=caption)
            for name, picture, caption in _pictures(data, summary)
        ]
    why = "Why rows failed, since it last went on."
    failed = [Table(("cause", "rows"), list(causes.items()), prose=True, caption=why)] if causes else []
    table = summary.head(LISTED)[list(COLUMNS)].rename(columns=COLUMNS).reset_index(names="unknown")
    unlisted = len(summary) - len(table)
    remark = (
        f" {counted(unlisted, 'further unknown')} of more effective samples left out." if unlisted else ""
    )
    return html_report.write(
        folder / NAME,
        title=title,
        lead=[*([about] if about else []), *sentences(data, asked)],
        blocks=[
            Table(
                table,
                caption="What the draws say, those unknowns first that have the fewest effective samples; "
                f"3 % and 97 % are the ends of the narrowest interval that has 94 % of the draws.{remark}",
            ),
            *figures,
            Heading("The black box"),
            Table(
                ("rows", "number"), list(_rows(data).items()), caption="What was run, of all that was asked."
            ),
            *failed,
            Paragraph(
                "The draws are in posterior.nc: arviz.from_netcdf reads them, with the potential of each "
                "proposal by the model and by the box."
            ),
            Details("Machine and versions", machine),
        ],
        footer=footer,
    )


def summarised(data: Any) -> Any:
    """ArviZ's summary, a pandas frame of unknowns, those first that have the fewest effective samples."""
    with _quiet():
        summary = arviz().summary(data, var_names=["x"], round_to="none")
    summary.index = [str(name) for name in data.posterior["unknown"].values]
    return summary.sort_values("ess_bulk", kind="stable")


def sentences(data: Any, asked: int) -> list[str]:
    """Describe the outcome, and advise what to do about it, each in a sentence."""
    summary, rows, stats = summarised(data), _rows(data), data.sample_stats
    least, mixed = summary.iloc[0], float(summary["r_hat"].max(skipna=False))
    draws, effective = data.posterior["x"], float(least["ess_bulk"])
    rate = float(stats["acceptance_rate"].mean())
    lines = []
    if data.attrs["stopped"]:
        lines.append(f"Stopped by the user after {rows['all']:,} of {asked:,} rows.")
    lines.append(
        f"{draws.sizes['draw']:,} draws of each of {draws.sizes['chain']} chains, after the first tenth, "
        f"have {effective:,.0f} effective samples of {summary.index[0]}, the least of {len(summary)} "
        f"unknowns: {1000 * effective / rows['all']:,.0f} for 1,000 rows. R-hat is {mixed:.3f} at most."
    )
    lines.append(
        f"A proposal was accepted with a probability of {rate:.2f}; "
        f"{int(stats['diverging'].sum()):,} of them diverged, and {rows['failed']:,} of all rows failed."
    )
    if not (effective >= ENOUGH and mixed <= MIXED):
        lines.append(
            f"Vehtari et al. (2021) ask for {ENOUGH} effective samples and an R-hat of {MIXED} at most: go "
            "on with more --rows, and the chains are prolonged."
        )
    if rate < ACCEPTED:
        lines.append(
            "Few proposals are accepted, for the model is far from the box: give more rows to --learn, or a "
            "twin."
        )
    return lines


def _rows(data: Any) -> dict[str, int]:
    every, learned = int(data.attrs["rows"]), int(data.attrs["rows_learned"])
    return {
        "all": every,
        "learned": learned,
        "asked twice more, at first": 2,
        "proposals of chains": every - learned - 2,
        "failed": int(data.attrs["rows_failed"]),
    }


def _pictures(data: Any, summary: Any) -> Iterator[tuple[str, MadeFigure, str]]:
    """Names, figures and captions; ArviZ draws into axes of ours."""
    few = list(summary.index[:SHOWN])
    names = {"var_names": ["x"], "labeller": arviz().labels.NoVarLabeller()}
    options = {**names, "coords": {"unknown": few}}
    whose = f"the {len(few)} unknowns of fewest effective samples" if len(summary) > SHOWN else "the unknowns"
    figure, axes = pictures.figure(8.0, 1.6 * len(few), len(few), 2)
    arviz().plot_trace(data, **options, compact=False, combined=False, axes=axes)
    yield "traces", _styled(figure), f"Densities and traces of {whose}, a colour for each chain."
    across = min(2, len(few))
    figure, axes = pictures.figure(4.0 * across, 2.8 * -(-len(few) // across), -(-len(few) // across), across)
    arviz().plot_rank(data, **options, ax=axes)
    for empty in axes.flat[len(few) :]:
        empty.set_visible(False)
    caption = "Ranks of each chain's draws among those of all: bars of one height where chains mix."
    yield "ranks", _styled(figure), caption
    if len(summary) > 1:
        worst = list(summary.index[:PAIRED])
        figure, axes = pictures.figure(2.4 * len(worst), 2.4 * len(worst), len(worst), len(worst))
        look = {"alpha": 0.25, "s": 8, "edgecolors": "none"}
        options = {**names, "coords": {"unknown": worst}}
        arviz().plot_pair(data, **options, kind="scatter", marginals=True, ax=axes, scatter_kwargs=look)
        for row, column in zip(*np.triu_indices(len(worst), 1), strict=True):
            axes[row, column].set_visible(False)
        yield "pairs", _styled(figure), "Draws of pairs of these unknowns, and the density of each."
    yield "model", *_model(data)


def _styled(made: MadeFigure) -> MadeFigure:
    """The figure in the house's style, which ArviZ has changed."""
    for panel in made.axes:
        pictures.style(panel)
    return made


def _model(data: Any) -> tuple[MadeFigure, str]:
    """The potential of proposals by the box over that by the model, and the caption."""
    stats = data.sample_stats
    names = ("proposed_potential_by_model", "proposed_potential", "accepted")
    model, box, yes = (stats[name].values.ravel() for name in names)
    finite = np.isfinite(model) & np.isfinite(box)
    figure, axes = pictures.figure(6.4, 4.0)
    panel = axes[0, 0]
    panel.set(xlabel="potential by the model", ylabel="potential by the box")
    if not finite.any():
        return figure, "No proposal has a finite potential by the model and by the box."
    model, box, yes = model[finite], box[finite], yes[finite].astype(bool)
    low = box.min()
    top = 1.1 * float(np.quantile(box - low, 0.99)) or 1.0
    for mask, colour, name in ((~yes, "#d55e00", "rejected"), (yes, "#0072b2", "accepted")):
        look = {"color": colour, "alpha": 0.4, "markersize": 4, "linestyle": "none"}
        panel.plot(model[mask] - low, box[mask] - low, marker=".", label=name, **look)
    panel.plot([-top, 2 * top], [-top, 2 * top], color=pictures.INK, linewidth=0.8)
    panel.set(xlim=(-0.05 * top, top), ylim=(-0.05 * top, top))
    pictures.legend_above(panel, 2)
    middle, half = np.median(box - model), np.subtract(*np.quantile(box - model, [0.75, 0.25])) / 2
    return figure, (
        "The potential of proposals, less the least, by the model and by the box: on the line the model "
        f"is right. Box less model is {middle:+.2g}, give or take {half:.2g} for half of them; from 1 on few "
        "are accepted. Draws are exact either way."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which ArviZ draws by Matplotlib's own settings, and tells nothing of later versions."""
    import logging

    logger = logging.getLogger("arviz")
    level = logger.level
    with pictures.own_settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
