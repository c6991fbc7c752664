"""`benchmarks/results/README.md`: published numbers, and claims of README and docs, with ours beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import protocol, published
from benchmarks.catalogue import BENCHMARKS, SMALL, origin, read
from benchmarks.claims import claims, line
from tasks.runs import atomic

RADII = ("0", "0.25", "0.5", "0.75")
NOT_RUN = "not run"
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
        "All are from Chen et al., *DeepZero*, ICLR 2024. What it only draws has no numbers.",
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


def _accuracies() -> Iterator[str]:
    """Image classification: a table for each publication's table."""
    tables = {
        "figure2_cge_vs_rge": ("Figure 2: the simple CNN by parameters", published.FIGURE_2),
        "table_query_number": (
            "RGE by queries a step, the CNN of 6,670 parameters",
            {label: {"rge": value} for label, value in published.QUERY_NUMBER.items()},
        ),
        "table_smoothing_parameter": (
            "CGE by smoothing parameter, the CNN of 9,640 parameters",
            {label: {"cge": value} for label, value in published.SMOOTHING_PARAMETER.items()},
        ),
        "figure4_sparsity": (
            "Figure 4: the residual network by sparsity",
            {0.0: published.FIGURE_4_DENSE, **published.FIGURE_4},
        ),
    }
    for name, (title, numbers) in tables.items():
        rows = []
        for label, methods in numbers.items():
            for method, stated in methods.items():
                rows.append(_accuracy(label, method, stated, line(name, label, method)))
        yield f"### {title}"
        said = read(f"{name}/result.json").get("differs", "Not run.")
        yield f"{said} (`python -m benchmarks {name} --size small`)"
        headers = ("", "method", "published (%)", "ours (%)", "seeds", "difference")
        yield table(headers, rows)


def _accuracy(label: object, method: str, stated: float, found: dict[str, Any] | None) -> Sequence[str]:
    cells = (f"{label:,}" if isinstance(label, int) else f"{label:g}", method, f"{stated:.2f}")
    if found is None:
        return (*cells, NOT_RUN, "", "")
    if found["ours"] is None:
        return (*cells, "not finite", str(found["seeds"]), "Ours did not stay finite.")
    off = found["ours"] - stated
    sentence = f"Ours is {abs(off):.1f} points {'above' if off > 0 else 'below'}, on another task."
    return (*cells, _spread(found["ours"], found["spread"], ".2f"), str(found["seeds"]), sentence)


def _wake() -> Iterator[str]:
    """Figure 7, beside the methods of its names in the run on the published grids."""
    found = read("wake_flow_small.json").get("table", ())
    alone = fmean(row["value"] for row in found if row["method"] == "SRC") if found else 1.0
    rows = []
    for method, stated in published.WAKE.items():
        share, own = stated / published.WAKE["SRC"], [r["value"] for r in found if r["method"] == method]
        cells = (method, f"{stated:.3f}", f"{share:.2f}")
        if not own:
            rows.append((*cells, NOT_RUN, "", "", ""))
            continue
        ratio = fmean(own) / alone
        sentence = "What both are measured by."
        if method != "SRC":
            more = "more" if ratio > share else "less"
            sentence = f"Ours leaves {abs(ratio - share):.2f} {more} of the solver's error."
        here = _spread(fmean(own), stdev(own) if len(own) > 1 else 0.0, ".3f")
        rows.append((*cells, here, f"{ratio:.2f}", str(len(own)), sentence))
    yield "### Figure 7: errors of the corrected wake"
    yield (
        "Ours is on the published grids and differs in the side walls, which move with the stream, in the "
        "viscosity, U D / Re_D on every grid, in the MAE, defined nowhere and here over 200 steps, in the "
        "flows tested, Re_D 170 to 680 (480 to 7,680), and in what is trained: 1,010 weights, 300 steps of "
        "ZO-SOL over 8 solver steps: so compare the ratios to SRC, not the errors. "
        "(`python -m benchmarks wake_flow_small --size small`)"
    )
    headers = ("method", "published MAE", "over SRC", "ours", "over SRC", "seeds", "difference")
    yield table(headers, rows)


def _defence() -> Iterator[str]:
    """The table of the black-box defence, beside our classifier "b" with logits."""
    found = read("table_defense-small-b-logits.json")
    rows = []
    families = {"fo-ds": "fo-ds", "zo-ae-ds": "zo-ae-ds:cge", "deepzero": "deepzero"}
    for family, figures in published.DEFENCE.items():
        own = [row for row in found.get("table", ()) if row["method"] == families[family]]
        for radius, stated in zip(RADII, figures, strict=True):
            values = [100 * row["extra"][f"certified accuracy at r = {radius}"] for row in own]
            cells = (family, radius, f"{stated:.2f}")
            if not values:
                rows.append((*cells, NOT_RUN, "", ""))
                continue
            mean = fmean(values)
            spread = max(values) - min(values)
            off = mean - stated
            sentence = f"Ours is {abs(off):.1f} points {'above' if off > 0 else 'below'}, on another task."
            shown = f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})" if spread else f"{mean:.1f}"
            rows.append((*cells, shown, str(len(values)), sentence))
    yield "### The black-box defence: certified accuracy"
    yield (
        "Published on ImageNet-10 with a ResNet-50, sigma .25; ours on scikit-learn's digits with classifier "
        "b and 20,000 queries (fo-ds 250,000), sigma .25, N = 10,000. Columns do not compare; what does is "
        "the order of the methods. In brackets the seeds' range. (`python -m benchmarks table_defense --size "
        "small`)"
    )
    headers = ("method", "r", "published (%)", "ours (%)", "seeds", "difference")
    yield table(headers, rows)


def _claims() -> str:
    rows = []
    for each in claims():
        ours = NOT_RUN
        if each.ours.values:
            decimals = len(each.stated.partition(".")[2]) + 1
            ours = _spread(each.ours.mean, each.ours.spread, f",.{decimals}f")
        seeds = str(len(each.ours.values) or "")
        what = each.what.replace("|", "\\|")
        rows.append((each.page, what, each.stated, ours, seeds, each.difference, each.source))
    return table(("page", "what", "stated", "ours", "seeds", "difference", "file"), rows)


def _benchmarks() -> str:
    rows = []
    for each in BENCHMARKS.values():
        for command, files in each.commands.items():
            small = command.endswith(SMALL)
            time, seeds = (each.time, str(each.seeds)) if small else ("", _seeds(files))
            rows.append((f"`{command}`", each.about, time, seeds, origin(files, command)))
    return table(("command", "published table or claim", "time", "seeds", "committed figures from"), rows)


def _seeds(files: Sequence[str]) -> str:
    found = [read(file) for file in files]
    counts = {len(each["seeds"]) for each in found if "seeds" in each}
    counts |= {len(each["curves"]["chosen"]) for each in found if "curves" in each}
    boxes = [box for each in found for box in each.get("boxes", {}).values()]
    counts |= {len({row["seed"] for row in box["lines"]}) for box in boxes}
    return ", ".join(map(str, sorted(counts)))
