"""`benchmarks/results/README.md`: published numbers, and claims of README and docs, with ours beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, linear_regression, stdev
from typing import Any

from benchmarks import protocol, published
from benchmarks.catalogue import BENCHMARKS, SMALL, origin, read
from benchmarks.claims import claims, line
from tasks.folder import atomic

RADII = ("0", "0.25", "0.5", "0.75")
NOT_RUN = "not run"
SAME = "The same, rounded as there."
CHANCE = 20.0  # percent of ten classes: a network below it has learned next to nothing
# what the committed files hold that today's code no longer gives
SINCE = {
    "tangents/*.json": "Their curves were added at different states of version 0.2.0; machine and versions "
    "are those of the last ones.",
    "table_defense-small-*.json": "Students took the classifier's own answer in the loss of rows that were "
    "asked, and learned in steps with queries alone.",
}

FIGURE_5 = (
    "The publication draws it, of a GPU and its own ratios. Ours, a ResNet-20 with 64 rows on one "
    "thread of an Intel Xeon, a step summed up from its blocks, layer ratios of GraSP: with feature "
    "reuse a step is 4.43, 4.43, 3.26, 2.58, 2.13 and 2.02 times as fast as without at sparsity 0, .5, "
    ".8, .9, .95 and .99. Measured once with version 0.1.0 at commit a506564. (`python -m benchmarks "
    "query_speed --size figure5` measures it again, and difference beside it.)"
)


def write(path: Path | None = None) -> Path:
    """Write the page; its path."""
    path = protocol.RESULTS / "README.md" if path is None else path
    atomic.write_bytes(path, text().encode())
    return path


def text() -> str:
    """The page, from the result files alone."""
    parts = [
        "# Published numbers and claims, with ours beside them",
        "Made by `python -m benchmarks page` from the files of this folder. ± is the standard deviation over "
        "seeds; without it there was one seed.",
        "## Published numbers",
        "All are from Chen et al., *DeepZero*, ICLR 2024. Data and networks are others here, so "
        "accuracies do not compare: "
        "what does is a method over first order in the same setting, the order of methods, and what "
        "a setting changes. Published "
        "lines that were not run are not here, and what the publication only draws has no numbers.",
        *_accuracies(),
        *_wake(),
        *_defence(),
        "### Figure 5: feature reuse",
        FIGURE_5,
        "## Claims of README and docs",
        _claims(),
        "## Benchmarks",
        _benchmarks(),
        "What has changed since they were measured:",
        "\n".join(f"- `{name}`: {sentence}" for name, sentence in SINCE.items()),
    ]
    return "\n\n".join(parts) + "\n"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(mean: float, spread: float, form: str) -> str:
    return f"{mean:{form}}" + (f" ± {spread:{form}}" if spread else "")


def _beside(name: str, method: str, stated: dict[Any, tuple[float, float]], base: str) -> list[Sequence[str]]:
    """Lines of a table of a method over a base: what was run alone.

    Args:
        name: Of the reproduction.
        method: Of the lines.
        stated: Label -> published accuracy of the method, and of what it is compared with.
        base: The method that it is compared with, of the same label or else of the dense network's.
    """
    rows = []
    for label, (own, other) in stated.items():
        found = line(name, label, method)
        beside = line(name, label, base) or line(name, 0.0, base)
        if found is None or beside is None or found["ours"] is None:
            continue
        shown = f"{label:,}" if isinstance(label, int) else f"{label:g}"
        published_ = (f"{own:.2f}", f"{other:.2f}", f"**{own / other:.2f}**")
        here = (f"{found['ours']:.2f}", f"{beside['ours']:.2f}", _range(_over(found, beside)))
        rows.append((shown, *published_, *here, str(found["seeds"])))
    return rows


def _values(found: dict[str, Any]) -> list[float]:
    """Ours of each seed; their mean where a file of an earlier version has that alone."""
    return found.get("values") or [found["ours"]]


def _over(found: dict[str, Any], beside: dict[str, Any]) -> list[float]:
    """A ratio for each seed; of the means where one of the two files has these alone."""
    both = _values(found), _values(beside)
    if len(both[0]) != len(both[1]):
        return [found["ours"] / beside["ours"]]
    return [one / other for one, other in zip(*both, strict=True)]


def _accuracies() -> Iterator[str]:
    """Image classification: a table for each method over first order, or for what a setting changes."""
    yield "### Figure 2: CGE and RGE over first order, the simple CNN"
    yield _differs("figure2_cge_vs_rge")
    for method in ("cge", "rge"):
        stated = {size: (each[method], each["fo"]) for size, each in published.FIGURE_2.items()}
        yield table((f"{method} by weights", *COLUMNS), _beside("figure2_cge_vs_rge", method, stated, "fo"))
    (low, high), (least, most) = (_ends("figure2_cge_vs_rge", "cge", place) for place in (0, 1))
    worst, own = (_ends("figure2_cge_vs_rge", "rge", place)[0] for place in (0, 1))
    yield (
        f"**What compares:** CGE keeps {low:.2f} to {high:.2f} of first order's accuracy as "
        f"published, {least:.2f} "
        f"to {most:.2f} here; RGE is the worse of the two in both, down to {worst:.2f} and {own:.2f}, "
        f"but for our "
        "smallest network, where all three are near chance."
    )
    yield from _by_setting(
        "table_query_number",
        "RGE by queries a step",
        "queries",
        "rge",
        published.QUERY_NUMBER,
        lambda slope: (
            f"a tenfold number of queries brings {slope[0]:.0f} points as published and "
            f"{slope[1]:.0f} here, in a shorter training."
        ),
    )
    yield from _by_setting(
        "table_smoothing_parameter",
        "CGE by smoothing parameter",
        "mu",
        "cge",
        published.SMOOTHING_PARAMETER,
        lambda _: (
            "in both mu = .5 ruins training, and .005 is best. As published 5e-6 is bad again; here "
            "it is not, and "
            "what is smaller still is refused, since it is lost in the rounding of a weight."
        ),
    )
    yield "### Figure 4: the residual network by sparsity, over first order on all weights"
    yield _differs("figure4_sparsity")
    lost = yield from _by_sparsity("figure4_sparsity", ("deepzero", "fo-sparse-gradient", "fo-sparse-weight"))
    yield (
        f"**What compares:** from a sparsity of .9 to .99 the share of first order's accuracy falls: "
        f"{lost}. In both "
        "a fixed mask (fo-sparse-weight) loses most. Digits are too easy to separate the other two."
    )
    yield from _shapes()


COLUMNS = ("published (%)", "first order", "ratio", "ours (%)", "first order", "ratio", "seeds")


def _by_sparsity(name: str, methods: Sequence[str]) -> Generator[str, None, str]:
    """A table for each method over first order on all weights; returns how much of the share is lost."""
    slopes = []
    for method in methods:
        stated = {
            share: (each[method], published.FIGURE_4_DENSE["fo"])
            for share, each in published.FIGURE_4.items()
        }
        rows = _beside(name, method, stated, "fo")
        yield table((f"{method} by sparsity", *COLUMNS), rows)
        ratios_ = [[_number(row[place]) for row in rows] for place in (3, 6)]
        slopes.append((method, *(each[0] - each[-1] for each in ratios_)))
    return "; ".join(f"{method} {one:.2f} as published, {other:.2f} here" for method, one, other in slopes)


def _number(cell: str) -> float:
    """The mean in a cell that `_range` wrote."""
    return float(cell.split("**")[1])


def _differs(name: str) -> str:
    """What differs from the publication, and the command."""
    said = read(f"{name}/result.json").get("differs", "Not run.")
    said = re.sub(r" So columns do not compare;[^.]*\.", "", said)
    return f"{said} (`python -m benchmarks {name} --size small`)"


def _ends(name: str, method: str, place: int) -> tuple[float, float]:
    """Least and greatest ratio of a method to first order, published (0) or ours (1), above chance."""
    stated = {size: (each[method], each["fo"]) for size, each in published.FIGURE_2.items()}
    rows = [row for row in _beside(name, method, stated, "fo") if float(row[5]) > CHANCE]
    ratios_ = [_number(row[(3, 6)[place]]) for row in rows]
    return min(ratios_), max(ratios_)


def _by_setting(
    name: str,
    title: str,
    setting: str,
    method: str,
    stated: dict[Any, float],
    said: Callable[[list[float]], str],
) -> Iterator[str]:
    """What a setting changes: accuracies over the best of the lines that both have."""
    pairs = [(label, own, line(name, label, method)) for label, own in stated.items()]
    run = [(label, own, found) for label, own, found in pairs if found and found["ours"] is not None]
    best = max(own for _, own, _ in run), max((found for *_, found in run), key=lambda each: each["ours"])
    rows = [
        (
            f"{label:g}",
            f"{own:.2f}",
            f"**{own / best[0]:.2f}**",
            _spread(found["ours"], found["spread"], ".2f"),
            _range(_over(found, best[1])),
            str(found["seeds"]),
        )
        for label, own, found in run
    ]
    logs = [math.log10(label) for label, *_ in run]
    stated_slope = linear_regression(logs, [own for _, own, _ in run]).slope
    slopes = [stated_slope, linear_regression(logs, [found["ours"] for *_, found in run]).slope]
    yield f"### {title}"
    yield _differs(name)
    yield table((setting, "published (%)", "over its best", "ours (%)", "over our best", "seeds"), rows)
    yield f"**What compares:** {said(slopes)}"


def _shapes() -> Iterator[str]:
    """Figure 4 at .99 on drawn shapes, to the end of training."""
    own = {method: line("shapes_sparse", 0.99, method) for method in ("deepzero", "fo-sparse-gradient")}
    deepzero, exact = own["deepzero"], own["fo-sparse-gradient"]
    if deepzero is None or exact is None:
        return
    stated = published.FIGURE_4[0.99]
    yield "### Figure 4 at .99 again, on drawn shapes, over exact gradients on the same sets"
    yield _differs("shapes_sparse")
    headers = ("method", "published (%)", "over exact", "ours (%)", "over exact", "seeds")
    rows = [
        (
            method,
            f"{stated[method]:.2f}",
            f"**{stated[method] / stated['fo-sparse-gradient']:.2f}**",
            f"{each['ours']:.2f} ± {each['spread']:.2f}",
            f"**{each['ours'] / exact['ours']:.2f}**",
            str(each["seeds"]),
        )
        for method, each in (("deepzero", deepzero), ("fo-sparse-gradient", exact))
    ]
    yield table(headers, rows)
    yield (
        "**What compares:** differences in place of exact gradients cost "
        f"{100 * (1 - stated['deepzero'] / stated['fo-sparse-gradient']):.0f} % of the accuracy as "
        f"published; here less than "
        "seeds differ by."
    )
    if not read("shapes_sparsity/result.json"):
        return
    yield "### Figure 4 at .9 on drawn shapes, exact gradients, over first order on all weights"
    yield _differs("shapes_sparsity")
    yield from _by_sparsity("shapes_sparsity", ("fo-sparse-gradient", "fo-sparse-weight"))
    dense = line("shapes_sparsity", 0.0, "fo")
    assert dense is not None
    there, here = stated["fo-sparse-gradient"] / published.FIGURE_4_DENSE["fo"], exact["ours"] / dense["ours"]
    yield (
        "**What compares:** the order, a set that is drawn anew each epoch before a fixed mask, and at .9 "
        "what the first keeps of first order's accuracy. A fixed mask loses more here. At .99, in the table "
        f"above, exact gradients on redrawn sets have {here:.2f} of first order's accuracy (published "
        f"{there:.2f}), in a shorter training."
    )


def _range(values: Sequence[float]) -> str:
    """A mean, and in brackets the least and the greatest of the seeds."""
    shown = f"**{fmean(values):.2f}**"
    return shown + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def _wake() -> Iterator[str]:
    """Figure 7: what each method leaves of the solver's error, and over first order."""
    found = read("wake_flow_small.json").get("table", ())
    errors = {
        method: {r["seed"]: r["value"] for r in found if r["method"] == method} for method in published.WAKE
    }
    rows = []
    for method, stated in published.WAKE.items():
        own = errors[method]
        if not own:
            continue
        over = [[own[seed] / errors[base][seed] for seed in own] for base in ("SRC", "FO-SOL")]
        shares = (
            f"{stated:.3f}",
            f"**{stated / published.WAKE['SRC']:.2f}**",
            f"**{stated / published.WAKE['FO-SOL']:.2f}**",
        )
        here = _spread(fmean(own.values()), stdev(own.values()) if len(own) > 1 else 0.0, ".3f")
        rows.append((method, *shares, here, *map(_range, over), str(len(own))))
    yield "### Figure 7: the corrected wake, over the solver alone and over first order"
    yield (
        "Ours is on the published grids and differs in the side walls, which move with the stream, in the "
        "viscosity, U D / Re_D on every grid, in the MAE, defined nowhere and here over 200 steps, in the "
        "flows tested, Re_D 170 to 680 (480 to 7,680), and in what is trained: 1,010 weights, 300 steps of "
        "ZO-SOL over 8 solver steps. In brackets the seeds' range. (`python -m benchmarks "
        "wake_flow_small --size small`)"
    )
    headers = (
        "method",
        "published MAE",
        "over SRC",
        "over FO-SOL",
        "ours",
        "over SRC",
        "over FO-SOL",
        "seeds",
    )
    yield table(headers, rows)
    yield (
        "**What compares:** the order is the same, SRC, NON, ZO-SOL, FO-SOL from worst to best. Here "
        "ZO-SOL comes closer "
        "to first order, and all trained networks leave less of the solver's error."
    )


def _defence() -> Iterator[str]:
    """The black-box defence, over first order, beside our classifier "b" with logits."""
    found = read("table_defense-small-b-logits.json").get("table", ())
    names = {"fo-ds": "fo-ds", "zo-ae-ds": "zo-ae-ds:cge", "deepzero": "deepzero"}

    def certified(family: str, radius: str) -> dict[int, float]:
        own = [row for row in found if row["method"] == names[family]]
        return {row["seed"]: 100 * row["extra"][f"certified accuracy at r = {radius}"] for row in own}

    yield "### The black-box defence: certified accuracy over first order's"
    yield (
        "Published on ImageNet-10 with a ResNet-50, sigma .25; ours on scikit-learn's digits with classifier "
        "b and 20,000 queries (fo-ds 250,000), sigma .25, N = 10,000. In brackets the seeds' range. "
        "(`python -m "
        "benchmarks table_defense --size small`)"
    )
    headers = ("r", "published (%)", "fo-ds", "ratio", "ours (%)", "fo-ds", "ratio", "seeds")
    for family in ("zo-ae-ds", "deepzero"):
        rows = []
        for place, radius in enumerate(RADII):
            stated, base = published.DEFENCE[family][place], published.DEFENCE["fo-ds"][place]
            own, first = certified(family, radius), certified("fo-ds", radius)
            if not own or not first:
                continue
            ratio = _range([own[seed] / first[seed] for seed in own])
            shown = (f"{fmean(own.values()):.1f}", f"{fmean(first.values()):.1f}", ratio, str(len(own)))
            rows.append((radius, f"{stated:.2f}", f"{base:.2f}", f"**{stated / base:.2f}**", *shown))
        yield table((f"{family}, {headers[0]}", *headers[1:]), rows)
    yield (
        "**What compares:** at r = 0 to .5 the order is the same, first order, deepzero, zo-ae-ds, "
        "and deepzero keeps more "
        "of first order's accuracy than zo-ae-ds. At r = .75 hardly any of our digits is certified "
        "by any method, so nothing does."
    )


def not_run() -> dict[str, list[str]]:
    """Published numbers that have no line here: title -> their labels."""
    tables: dict[str, tuple[str, dict[Any, Iterable[str]]]] = {
        "Figure 2": ("figure2_cge_vs_rge", dict(published.FIGURE_2)),
        "RGE by queries a step": ("table_query_number", {label: ["rge"] for label in published.QUERY_NUMBER}),
        "CGE by smoothing parameter": (
            "table_smoothing_parameter",
            {label: ["cge"] for label in published.SMOOTHING_PARAMETER},
        ),
        "Figure 4": ("figure4_sparsity", {0.0: published.FIGURE_4_DENSE, **published.FIGURE_4}),
    }
    found = {
        title: [
            f"{label:,}, {method}" if isinstance(label, int) else f"{label:g}, {method}"
            for label, methods in lines.items()
            for method in methods
            if line(name, label, method) is None
        ]
        for title, (name, lines) in tables.items()
    }
    return {title: labels for title, labels in found.items() if labels}


def _claims() -> str:
    """How many figures of each page are what the files say, and in full those that are not."""
    found = claims()
    off = [each for each in found if each.difference != SAME]
    rows = []
    for page in dict.fromkeys(each.page for each in found):
        own = [each for each in found if each.page == page]
        files = sorted({each.source.split("/")[0] for each in own if each.ours.values})
        differ = sum(each.difference.startswith("Ours") for each in own)
        missing = sum(not each.ours.values for each in own)
        rows.append(
            (
                page,
                str(len(own)),
                str(len(own) - differ - missing),
                str(differ),
                str(missing),
                ", ".join(files),
            )
        )
    parts = [
        "Each figure is read where it stands on its page and compared with the files "
        "(`benchmarks/claims.py`); a test holds "
        "that none differs.",
        table(
            ("page", "figures", "the same, rounded as there", "different", "without a file", "files"), rows
        ),
    ]
    if off:
        parts.append("Different, or without a committed file:")
        parts.append(
            table(
                ("page", "what", "stated", "ours", "difference", "file"),
                [
                    (
                        each.page,
                        each.what.replace("|", "\\|"),
                        each.stated,
                        f"{each.ours.mean:.4g}" if each.ours.values else NOT_RUN,
                        each.difference,
                        each.source,
                    )
                    for each in off
                ],
            )
        )
    return "\n\n".join(parts)


def _benchmarks() -> str:
    rows = []
    for each in BENCHMARKS.values():
        alike: dict[tuple[str, ...], list[str]] = {}  # commands that differ in the problem alone
        for command, files in each.commands.items():
            small = command.endswith(SMALL)
            time, seeds = (each.time, str(each.seeds)) if small else ("", _seeds(files))
            stem, _, rest = command.partition(" --problems ")
            problem, _, options = rest.partition(" ")
            alike.setdefault((stem, options, time, seeds, origin(files, command)), []).append(problem)
        for (stem, options, time, seeds, place), problems in alike.items():
            words = [stem, "--problems", *problems] if any(problems) else [stem]
            rows.append((f"`{' '.join([*words, options]).strip()}`", each.about, time, seeds, place))
    return table(("command", "published table or claim", "time", "seeds", "committed figures from"), rows)


def _seeds(files: Sequence[str]) -> str:
    found = [read(file) for file in files]
    counts = {len(each["seeds"]) for each in found if "seeds" in each}
    counts |= {len(each["curves"]["chosen"]) for each in found if "curves" in each}
    boxes = [box for each in found for box in each.get("boxes", {}).values()]
    counts |= {len({row["seed"] for row in box["lines"]}) for box in boxes}
    return ", ".join(map(str, sorted(counts)))
