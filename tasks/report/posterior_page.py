"""`report.html` of a sampling: how far the draws can be believed, what they say, and what they cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.words import counted
from tasks.report import html_report, pictures
from tasks.report.html_report import Block, Details, Figure, Heading, Paragraph, Table

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
        folder: Where.
        data: What `zo.sample` gave, whose `x` has the dimension `unknown`, with names.
        title: Of the page.
        about: What the posterior is.
        asked: Rows that were to be run.
        causes: Why rows failed in this process, and how many.
        machine: Machine and versions.
        footer: How it was started.
    """
    summary = summarised(data)
    with _quiet():
        made = [
            _figure(folder / f"{name}.png", picture, caption)
            for name, picture, caption in _pictures(data, summary)
        ]
    table = summary.head(LISTED)[list(COLUMNS)].rename(columns=COLUMNS).reset_index(names="unknown")
    left = len(summary) - len(table)
    rest = f" {counted(left, 'further unknown')} of more effective samples left out." if left else ""
    return html_report.write(
        folder / NAME,
        title=title,
        lead=[*([about] if about else []), *sentences(data, asked)],
        blocks=[
            Table(
                table,
                caption="What the draws say, those unknowns first that have the fewest effective samples; "
                f"3 % and 97 % are the ends of the narrowest interval that has 94 % of the draws.{rest}",
            ),
            *made,
            Heading("The black box"),
            Table(
                ("rows", "number"), list(_rows(data).items()), caption="What was run, of all that was asked."
            ),
            *(
                [Table(("cause", "rows"), list(causes.items()), prose=True, caption="Why rows failed.")]
                if causes
                else []
            ),
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
    import arviz

    with _quiet():
        summary = arviz.summary(data, var_names=["x"], round_to="none")
    summary.index = [str(name) for name in data.posterior["unknown"].values]
    return summary.sort_values("ess_bulk", kind="stable")


def sentences(data: Any, asked: int) -> list[str]:
    """What came out, and what to do about it, each a sentence."""
    summary, rows, stats = summarised(data), _rows(data), data.sample_stats
    least, mixed = summary.iloc[0], float(summary["r_hat"].max())
    draws, effective = data.posterior["x"], float(least["ess_bulk"])
    rate = float(stats["acceptance_rate"].mean())
    said = []
    if data.attrs["stopped"]:
        said.append(f"Stopped by the user after {rows['all']:,} of {asked:,} rows.")
    said.append(
        f"{draws.sizes['draw']:,} draws of each of {draws.sizes['chain']} chains, after the first tenth, "
        f"have {effective:,.0f} effective samples of {summary.index[0]}, the least of {len(summary)} "
        f"unknowns: {1000 * effective / rows['all']:,.0f} for 1,000 rows. R-hat is {mixed:.3f} at most."
    )
    said.append(
        f"A proposal was accepted with a probability of {rate:.2f}; "
        f"{int(stats['diverging'].sum()):,} of them diverged, and {rows['failed']:,} of all rows failed."
    )
    if not (effective >= ENOUGH and mixed <= MIXED):
        said.append(
            f"That is too little to rely on: at least {ENOUGH} effective samples and an R-hat of at most "
            f"{MIXED} are asked for. Go on with more --rows: the chains are prolonged."
        )
    if rate < ACCEPTED:
        said.append(
            "Few proposals are accepted, for the model is far from the box: give more rows to --learn, or a "
            "twin."
        )
    return said


def _rows(data: Any) -> dict[str, int]:
    every, learned = int(data.attrs["rows"]), int(data.attrs["rows_learned"])
    return {
        "all": every,
        "learned": learned,
        "asked twice more, at first": 2,
        "proposals of chains": every - learned - 2,
        "failed": int(data.attrs["rows_failed"]),
    }


def _pictures(data: Any, summary: Any) -> Iterator[tuple[str, Any, str]]:
    """Names, figures and captions."""
    import arviz

    few = list(summary.index[:SHOWN])
    names = {"var_names": ["x"], "labeller": arviz.labels.NoVarLabeller()}
    chosen = {**names, "coords": {"unknown": few}}
    worst = "fewest effective samples" if len(summary) > SHOWN else "unknowns"
    size = (8.0, 1.5 * len(few) + 0.4)
    axes = arviz.plot_trace(data, **chosen, compact=False, combined=False, figsize=size)
    yield "traces", axes, f"Densities and traces of the {worst}, a colour for each chain."
    down = math.ceil(len(few) / 2)
    axes = arviz.plot_rank(data, **chosen, figsize=(8.0, 2.6 * down), grid=(down, 2))
    yield (
        "ranks",
        axes,
        "Ranks of each chain's draws among those of all: bars of one height where chains mix.",
    )
    if len(summary) > 1:
        pairs = {**names, "coords": {"unknown": list(summary.index[:PAIRED])}}
        axes = arviz.plot_pair(
            data,
            **pairs,
            kind="scatter",
            marginals=True,
            figsize=(7.0, 7.0),
            scatter_kwargs={"alpha": 0.25, "s": 8, "edgecolors": "none"},
        )
        yield "pairs", axes, "Draws of pairs of unknowns, and the density of each."
    yield (
        "model",
        _model(data),
        (
            "The potential of proposals, less the least, by the model and by the box: on the line the model "
            "is right. Draws are exact either way; a proposal far above the line is not accepted."
        ),
    )


def _model(data: Any) -> np.ndarray:
    """The potential of proposals by the box over that by the model."""
    stats = data.sample_stats
    model = stats["proposed_potential_by_model"].values.ravel()
    box = stats["proposed_potential"].values.ravel()
    yes = stats["accepted"].values.ravel().astype(bool)
    finite = np.isfinite(model) & np.isfinite(box)
    _, axes = pictures.figure(6.4, 4.0)
    panel = axes[0, 0]
    if finite.any():
        low = box[finite].min()
        top = float(np.quantile(box[finite] - low, 0.99)) * 1.1 or 1.0
        for kept, colour, name in ((~yes, "#d55e00", "rejected"), (yes, "#0072b2", "accepted")):
            shown = finite & kept
            panel.plot(
                *(model[shown] - low, box[shown] - low),
                ".",
                color=colour,
                alpha=0.4,
                markersize=4,
                label=name,
            )
        panel.plot([-top, 2 * top], [-top, 2 * top], color=pictures.INK, linewidth=0.8)
        panel.set(xlim=(-0.05 * top, top), ylim=(-0.05 * top, top))
        difference = (box - model)[finite]
        panel.set_title(
            f"box - model: {np.median(difference):.2g}, half of them within "
            f"{np.subtract(*np.quantile(difference, [0.75, 0.25])) / 2:.2g} of that"
        )
        pictures.legend_above(panel, 2)
    panel.set(xlabel="potential by the model", ylabel="potential by the box")
    return axes


def _figure(path: Path, axes: Any, caption: str) -> Block:
    made = np.ravel(axes)[0].figure
    pictures.save(made, path)
    import matplotlib.pyplot

    matplotlib.pyplot.close(made)
    return Figure(path, alt=caption, caption=caption)


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
