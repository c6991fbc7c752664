"""`benchmarks/results/README.md`: published numbers with ours beside them, and the benchmarks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

from benchmarks import protocol, published
from benchmarks.catalogue import BENCHMARKS, SMALL, origin, read
from tasks.folder import atomic

RADII = ("0", "0.25", "0.5", "0.75")
SAYS_NOTHING = "-"  # in place of a ratio
CHANCE = 20.0  # percent of ten classes: where first order is below it, nothing was learned
CERTIFIED = 10.0  # percent: where first order is below it, a ratio is of a handful of images
# two standard errors of the ratio of two accuracies of .92
ONE_SEED = "One seed and 300 test images: ratios that differ by less than .05 are not distinguishable."
# what the committed files hold that today's code no longer gives
SINCE = {
    "tangents/*.json": "Their curves were added at different states of versions 0.2.0 and 0.3.0; machine and "
    "versions of a file are those of the last ones, and `origins` in it has them by method since 0.3.0.",
    "table_defense-small-*.json": "Students took the classifier's own answer in the loss of rows that were "
    "asked, and learned in steps with queries alone.",
}


def write(path: Path | None = None) -> Path:
    """Write the page; its path."""
    path = protocol.RESULTS / "README.md" if path is None else path
    atomic.write_bytes(path, text().encode())
    return path


def text() -> str:
    """The page, from the result files alone."""
    parts = [
        "# Published numbers, with ours beside them",
        "Made by `python -m benchmarks page` from the files of this folder. So is `figures.json`, which has "
        "the figures that README and documentation state; their pages mark each with its name there.",
        "## Published numbers",
        "All are from Chen et al., *DeepZero*, ICLR 2024. Data and networks are others here, so "
        "accuracies do not compare: what does is a method over first order in the same setting, the order of "
        "methods, and what a setting changes. Published lines that were not run, or only where everything "
        "succeeds, are not here, and what the publication only draws has no numbers.",
        "± is the standard deviation over seeds, without it there was one seed; a ratio is the mean of the "
        f"seeds' own, with the least and the greatest of them in brackets. {SAYS_NOTHING} stands where first "
        "order itself is near chance, or certifies hardly anything, so that a ratio says nothing.",
        *_sizes(),
        *_queries(),
        *_smoothing(),
        *_sparsities(),
        *_wake(),
        *_defence(),
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


Line: TypeAlias = dict[str, Any] | None


def line(name: str, label: object, method: str) -> Line:
    """A line of a reproduction's table; None where it was not run."""
    lines = read(f"{name}/result.json").get("table", ())
    return next((entry for entry in lines if (entry["label"], entry["method"]) == (label, method)), None)


def _beside(
    name: str, method: str, stated: dict[Any, tuple[float, float]], base: Callable[[Any], Line]
) -> list[Sequence[str]]:
    """Lines of a table of a method over a base: what was run alone.

    Args:
        name: Of the reproduction.
        method: Of the lines.
        stated: Label -> published accuracy of the method, and of what it is compared with.
        base: Label -> our line of what it is compared with.
    """
    rows = []
    for label, (stated_value, other) in stated.items():
        entry, beside = line(name, label, method), base(label)
        if entry is None or beside is None or entry["ours"] is None:
            continue
        shown = f"{label:,}" if isinstance(label, int) else f"{label:g}"
        published_ = (f"{stated_value:.2f}", f"{other:.2f}", f"**{stated_value / other:.2f}**")
        ratio = _range(_over(entry, beside)) if beside["ours"] > CHANCE else SAYS_NOTHING
        here = (_spread(entry["ours"], entry["spread"], ".2f"), f"{beside['ours']:.2f}", ratio)
        rows.append((shown, *published_, *here, str(entry["seeds"])))
    return rows


def _values(entry: dict[str, Any]) -> list[float]:
    """Ours of each seed; their mean where a file of an earlier version has that alone."""
    return entry.get("values") or [entry["ours"]]


def _over(entry: dict[str, Any], beside: dict[str, Any]) -> list[float]:
    """A ratio for each seed; of the means where one of the two files has these alone."""
    both = _values(entry), _values(beside)
    if len(both[0]) != len(both[1]):
        return [entry["ours"] / beside["ours"]]
    return [one / other for one, other in zip(*both, strict=True)]


def _number(cell: str) -> float:
    """The mean in a cell that `_range` wrote; NaN where there is none."""
    return float(cell.split("**")[1]) if "**" in cell else math.nan


def _ratios(rows: Sequence[Sequence[str]]) -> tuple[list[float], list[float]]:
    """The published ratios and ours of those lines of `_beside` that compare."""
    both = [(_number(row[3]), _number(row[6])) for row in rows if row[6] != SAYS_NOTHING]
    return [one for one, _ in both], [other for _, other in both]


def _differs(name: str) -> str:
    """What differs from the publication, how sure a line is where it has one seed, and the command."""
    result = read(f"{name}/result.json")
    said = re.sub(r" So columns do not compare;[^.]*\.", "", result["differs"])
    if len(result["seeds"]) == 1:
        said += f" {ONE_SEED}"
    return f"{said} (`python -m benchmarks {name} --size small`)"


COLUMNS = ("published (%)", "first order", "ratio", "ours (%)", "first order", "ratio", "seeds")


def _sizes() -> Iterator[str]:
    """Figure 2: CGE and RGE by the size of the network."""
    name = "figure2_cge_vs_rge"
    yield "### Figure 2: CGE and RGE over first order, the simple CNN"
    run = [found for size in published.FIGURE_2 if (found := line(name, size, "fo")) is not None]
    weights = ", ".join(f"{each['parameters']:,}" for each in run)
    yield f"{_differs(name)} Lines are by the published number of weights; ours have {weights}."
    ratios_of = {}
    for method in ("cge", "rge"):
        stated = {
            size: (accuracies[method], accuracies["fo"]) for size, accuracies in published.FIGURE_2.items()
        }
        rows = _beside(name, method, stated, lambda size: line(name, size, "fo"))
        yield table((f"{method} by weights", *COLUMNS), rows)
        ratios_of[method] = _ratios(rows)
    (there, _), (rge_there, _) = ratios_of["cge"], ratios_of["rge"]
    close, below, count = by_training()
    yield (
        "**What compares:** where the network learns, which our smallest does not, CGE ends where first "
        f"order does, at {_from_to(there)} of its accuracy as published and within .05 of it in {close} of "
        f"{count} trainings here, and RGE with as many queries below it, at {_from_to(rge_there)} as "
        f"published and in {below} of {count} here. In the other one first order itself failed, at 50 %: "
        "accuracies of seeds differ by more than those of methods."
    )


def by_training() -> tuple[int, int, int]:
    """Trainings of figure 2 in which CGE ends within .05 of first order, RGE below it, and all."""
    close = below = count = 0
    for size in published.FIGURE_2:
        tried = (line("figure2_cge_vs_rge", size, method) for method in ("fo", "cge", "rge"))
        lines = [found for found in tried if found is not None]
        if len(lines) < 3 or lines[0]["ours"] < CHANCE:
            continue
        for fo, cge, rge in zip(*(found["values"] for found in lines), strict=True):
            close, below, count = close + (abs(cge / fo - 1) < 0.05), below + (rge < fo), count + 1
    return close, below, count


def _from_to(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _one_network(name: str, method: str, size: int, stated: Mapping[Any, float]) -> list[Sequence[str]]:
    """Lines of a table of what a setting changes, over first order on the same network in figure 2."""
    first = published.FIGURE_2[size]["fo"]
    pairs = {label: (stated_value, first) for label, stated_value in stated.items()}
    return _beside(name, method, pairs, lambda _: line("figure2_cge_vs_rge", size, "fo"))


def _queries() -> Iterator[str]:
    """RGE by the number of directions."""
    name = "table_query_number"
    rows = _one_network(name, "rge", 6670, published.QUERY_NUMBER)
    yield "### RGE by queries a step, over first order"
    yield _differs(name)
    yield table(("queries", *COLUMNS), rows)
    (there, here), labels = _ratios(rows), [row[0] for row in rows]
    weights = max(each["parameters"] for each in read(f"{name}/result.json")["table"])
    yield (
        "**What compares:** more queries bring RGE nearer to first order at every line of both, from "
        f"{there[-1]:.2f} of its accuracy at {labels[-1]} a step to {there[0]:.2f} at {labels[0]} as "
        f"published, from {here[-1]:.2f} to {here[0]:.2f} here, on "
        f"{weights:,} weights in place of 6,670, for which as many queries are worth more."
    )


def _smoothing() -> Iterator[str]:
    """CGE by mu."""
    name = "table_smoothing_parameter"
    rows = _one_network(name, "cge", 9640, published.SMOOTHING_PARAMETER)
    yield "### CGE by smoothing parameter, over first order"
    yield _differs(name)
    yield table(("mu", *COLUMNS), rows)
    there, here = _ratios(rows)
    yield (
        f"**What compares:** mu = {rows[0][0]} ruins training in both ({there[0]:.2f} and {here[0]:.2f} of "
        f"first order's accuracy). Below it mu hardly matters here ({_from_to(here[1:])}), while the "
        f"published code loses accuracy at {rows[1][0]} ({there[1]:.2f}) and at {rows[-1][0]} "
        f"({there[-1]:.2f}); ours evaluates queries by `difference`, which rounds nothing away."
    )


def _sparsities() -> Iterator[str]:
    """Figure 4: the residual network by sparsity."""
    first = published.FIGURE_4_DENSE["fo"]
    yield "### Figure 4: the residual network by sparsity, over first order on all weights"
    yield _differs("shapes_sparsity")
    rows_of = {}
    for method in ("fo-sparse-gradient", "fo-sparse-weight"):
        stated = {share: (accuracies[method], first) for share, accuracies in published.FIGURE_4.items()}
        rows = _beside("shapes_sparsity", method, stated, lambda _: line("shapes_sparsity", 0.0, "fo"))
        yield table((f"{method} by sparsity", *COLUMNS), rows)
        rows_of[method] = rows
    (drawn, drawn_here), (fixed, fixed_here) = (_ratios(rows) for rows in rows_of.values())
    labels = [row[0] for row in rows_of["fo-sparse-gradient"]]
    yield (
        "**What compares:** a set that is drawn anew each epoch (fo-sparse-gradient) keeps more of first "
        "order's accuracy than a fixed mask (fo-sparse-weight) at every sparsity, in both. From "
        f"{labels[0]} to {labels[-1]} the former falls from {drawn[0]:.2f} to {drawn[-1]:.2f} and the latter "
        f"from {fixed[0]:.2f} to {fixed[-1]:.2f} as published, from {drawn_here[0]:.2f} to "
        f"{drawn_here[-1]:.2f} and from {fixed_here[0]:.2f} to {fixed_here[-1]:.2f}, which is chance, here, "
        "in a training of 38,000 images in place of 2.5 million."
    )
    stated = published.FIGURE_4[0.99]
    pair = {0.99: (stated["deepzero"], stated["fo-sparse-gradient"])}
    rows = _beside(
        "shapes_sparse", "deepzero", pair, lambda share: line("shapes_sparse", share, "fo-sparse-gradient")
    )
    yield (
        "deepzero itself was trained on shapes at .99 alone, here over exact gradients on the same sets. "
        "(`python -m benchmarks shapes_sparse --size small`)"
    )
    yield table(
        ("deepzero by sparsity", *(column.replace("first order", "exact") for column in COLUMNS)), rows
    )
    ((there,), _) = _ratios(rows)
    digits = [line("figure4_sparsity", share, "deepzero") for share in published.FIGURE_4]
    shares = [entry["ours"] for entry in digits if entry is not None]
    dense = line("figure4_sparsity", 0.0, "fo")
    assert dense is not None
    yield (
        f"**What compares:** differences in place of exact gradients cost {100 * (1 - there):.0f} % of the "
        f"accuracy as published. Here the ratio differs more than that from seed to seed, so three seeds "
        f"neither show such a cost nor exclude it. On digits deepzero has {min(shares):.1f} to "
        f"{max(shares):.1f} % from .9 to .99 and first order {dense['ours']:.1f}: too easy to compare."
    )


def _range(values: Sequence[float]) -> str:
    """A mean, and in brackets the least and the greatest of the seeds, where they differ."""
    shown = f"**{fmean(values):.2f}**"
    return shown + (f" ({min(values):.2f} to {max(values):.2f})" if max(values) > min(values) else "")


def _wake() -> Iterator[str]:
    """Figure 7: what each method leaves of the solver's error, and over first order."""
    lines = read("wake_flow_small.json").get("table", ())
    errors = {
        method: {r["seed"]: r["value"] for r in lines if r["method"] == method} for method in published.WAKE
    }
    rows, over = [], {}
    for method, stated in published.WAKE.items():
        by_seed = errors[method]
        over[method] = [
            [by_seed[seed] / errors[base][seed] for seed in by_seed] for base in ("SRC", "FO-SOL")
        ]
        shares = (
            f"{stated:.3f}",
            f"**{stated / published.WAKE['SRC']:.2f}**",
            f"**{stated / published.WAKE['FO-SOL']:.2f}**",
        )
        here = _spread(fmean(by_seed.values()), stdev(by_seed.values()), ".3f")
        rows.append((method, *shares, here, *map(_range, over[method]), str(len(by_seed))))
    yield "### Figure 7: the corrected wake, over the solver alone and over first order"
    yield (
        "Ours is on the published grids and differs in the side walls, which move with the stream, in the "
        "viscosity, U D / Re_D on every grid, in the MAE, defined nowhere and here over 200 steps, in the "
        "flows tested, Re_D 170 to 680 (480 to 7,680), and in what is trained: 1,010 weights, 300 steps of "
        "ZO-SOL over 8 solver steps. (`python -m benchmarks wake_flow_small --size small`)"
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
    zo, stated = over["ZO-SOL"][1], published.WAKE["ZO-SOL"] / published.WAKE["FO-SOL"]
    yield (
        "**What compares:** the means are in the same order, SRC, NON, ZO-SOL, FO-SOL from worst to best. "
        f"Here ZO-SOL ends at {fmean(zo):.2f} of first order's error (published {stated:.2f}), in one seed "
        f"at {min(zo):.2f}, so {len(zo)} seeds hardly tell the two apart. That networks leave less of the "
        "solver's error here may be due to these flows alone."
    )


def _defence() -> Iterator[str]:
    """The black-box defence, over first order, beside our classifier "b" with logits."""
    lines = read("table_defense-small-b-logits.json").get("table", ())
    names = {"fo-ds": "fo-ds", "zo-ae-ds": "zo-ae-ds:cge", "deepzero": "deepzero"}

    def certified(family: str, radius: str) -> dict[int, float]:
        lines_of_method = [row for row in lines if row["method"] == names[family]]
        return {
            row["seed"]: 100 * row["extra"][f"certified accuracy at r = {radius}"] for row in lines_of_method
        }

    yield "### The black-box defence: certified accuracy over first order's"
    yield (
        "Published on ImageNet-10 with a ResNet-50, sigma .25; ours on scikit-learn's digits with classifier "
        "b and 20,000 queries (fo-ds 250,000), sigma .25, N = 10,000. (`python -m benchmarks table_defense "
        "--size small`)"
    )
    headers = ("published (%)", "fo-ds", "ratio", "ours (%)", "fo-ds", "ratio", "seeds")
    for family in ("zo-ae-ds", "deepzero"):
        rows = []
        for place, radius in enumerate(RADII):
            stated, base = published.DEFENCE[family][place], published.DEFENCE["fo-ds"][place]
            ours, first = certified(family, radius), certified("fo-ds", radius)
            most = fmean(first.values())
            ratio = _range([ours[seed] / first[seed] for seed in ours]) if most > CERTIFIED else SAYS_NOTHING
            mean = _spread(fmean(ours.values()), stdev(ours.values()), ".1f")
            shown = (mean, f"{most:.1f}", ratio, str(len(ours)))
            rows.append((radius, f"{stated:.2f}", f"{base:.2f}", f"**{stated / base:.2f}**", *shown))
        yield table((f"{family}, r", *headers), rows)
    yield (
        "**What compares:** at r = 0, .25 and .5 deepzero keeps more of first order's certified accuracy "
        "than zo-ae-ds does, in both, and the share of each falls with r. Ours of deepzero reaches first "
        "order's in some seeds; first order had more queries. At r = .75 hardly any of our digits is "
        "certified by any method."
    )


def not_run() -> dict[str, list[str]]:
    """Published numbers that have no line here: title -> their labels."""
    tables: dict[str, tuple[Sequence[str], dict[Any, Iterable[str]]]] = {
        "Figure 2": (["figure2_cge_vs_rge"], dict(published.FIGURE_2)),
        "RGE by queries a step": (
            ["table_query_number"],
            {label: ["rge"] for label in published.QUERY_NUMBER},
        ),
        "CGE by smoothing parameter": (
            ["table_smoothing_parameter"],
            {label: ["cge"] for label in published.SMOOTHING_PARAMETER},
        ),
        "Figure 4": (
            ["shapes_sparsity", "shapes_sparse"],
            {0.0: published.FIGURE_4_DENSE, **published.FIGURE_4},
        ),
    }
    missing = {
        title: [
            f"{label:,}, {method}" if isinstance(label, int) else f"{label:g}, {method}"
            for label, methods in lines.items()
            for method in methods
            if not any(line(name, label, method) for name in names)
        ]
        for title, (names, lines) in tables.items()
    }
    return {title: labels for title, labels in missing.items() if labels}


def _benchmarks() -> str:
    rows = []
    for benchmark in BENCHMARKS.values():
        alike: dict[tuple[str, ...], list[str]] = {}  # commands that differ in the problem alone
        for command, files in benchmark.commands.items():
            small = command.endswith(SMALL)
            time, seeds = (benchmark.time, str(benchmark.seeds)) if small else ("", _seeds(files))
            stem, _, rest = command.partition(" --problems ")
            problem, _, options = rest.partition(" ")
            alike.setdefault((stem, options, time, seeds, origin(files, command)), []).append(problem)
        for (stem, options, time, seeds, place), problems in alike.items():
            words = [stem, "--problems", *problems] if any(problems) else [stem]
            rows.append((f"`{' '.join([*words, options]).strip()}`", benchmark.about, time, seeds, place))
    return table(("command", "published table or claim", "time", "seeds", "committed figures from"), rows)


def _seeds(files: Sequence[str]) -> str:
    results = [read(file) for file in files]
    counts = {len(result["seeds"]) for result in results if "seeds" in result}
    counts |= {len(result["curves"]["chosen"]) for result in results if "curves" in result}
    boxes = [box for result in results for box in result.get("boxes", {}).values()]
    counts |= {len({row["seed"] for row in box["lines"]}) for box in boxes}
    return ", ".join(map(str, sorted(counts)))
