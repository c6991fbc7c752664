"""The figures that README and docs state, each beside what the committed results say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from benchmarks import protocol
from benchmarks.catalogue import read
from benchmarks.tangents.report import ratios, spent


@dataclass(frozen=True)
class Figure:
    """Ours: a value for each seed; none where it was not run."""

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where it was not run."""
        return fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Claim:
    """A figure that a page states.

    Attributes:
        page: From the repository's root.
        what: In words.
        stated: As it is written there.
        ours: From the committed results.
        source: The file in `benchmarks/results`; a sentence where there is none.
    """

    page: str
    what: str
    stated: str
    ours: Figure
    source: str

    @property
    def difference(self) -> str:
        """In a sentence."""
        if not self.ours.values:
            return "not run"
        number = float(self.stated.replace(",", ""))
        decimals = len(self.stated.partition(".")[2])
        off = self.ours.mean - number
        if abs(off) <= 0.5 * 10.0**-decimals + 1e-9:
            return "The same, rounded as there."
        return f"Ours is {abs(off):.2g} {'above' if off > 0 else 'below'} it."


def line(name: str, label: object, method: str) -> dict[str, Any] | None:
    """A line of a reproduction's table; None where it was not run."""
    lines = read(f"{name}/result.json").get("table", ())
    return next((each for each in lines if (each["label"], each["method"]) == (label, method)), None)


def figure(file: str, table: str, column: str, /, unit: float = 1.0, **where: object) -> Figure:
    """The values of a column in the rows of a file's table, such as a row for each seed.

    Args:
        file: In `benchmarks/results`.
        table: Its name in the file, or several with "/" between; a table of one row may be the row itself.
        column: Of the rows, or of what they have in "extra"; with "/" between names a value further in.
        unit: In which the values are.
        **where: What other columns hold in these rows.
    """
    found: Any = read(file)
    for name in table.split("/"):
        found = found.get(name, {})
    values = []
    for row in found if isinstance(found, list) else [found] if found else []:
        if all(row[name] == wanted for name, wanted in where.items()):
            value: Any = {**row.get("extra", {}), row.get("metric"): row.get("value"), **row}
            for name in column.split("/") if column not in value else (column,):
                value = value[name]
            values.append(value)
    return Figure() if None in values else Figure(tuple(value / unit for value in values))


def ratio(one: Figure, other: Figure) -> Figure:
    """Of the means."""
    return Figure((one.mean / other.mean,)) if one.values and other.values else Figure()


WAKE, DEFENCE = "docs/applications/wake_flow.md", "docs/applications/denoised_smoothing.md"
IMAGES = "docs/applications/image_classification.md"


def claims() -> list[Claim]:
    """All of them, in the order of the pages."""
    return [*_readme(), *_tangents(), *_queries(), *_wake(), *_defence(), *_images()]


def _readme() -> Iterator[Claim]:
    """Its table, a line for each method; and the demo's."""
    file = "wake_flow_demo.json"
    for column, stated in (("rows", "54"), ("value", "1.18")):
        own, first = (figure(file, "table", column, method=name) for name in ("ZO-SOL", "FO-SOL"))
        what = f"demo, ZO-SOL: {column} over first order's"
        yield Claim("README.md", what, stated, ratio(own, first), file)
    yield from _over_all(
        "README.md",
        "tangents",
        {
            "chosen": ("1.05", "1.02", ".94", "1.61", "29"),
            "no-gradient": ("1.00", "1.67", ".79", "39.7", "29"),
        },
    )
    for method, stated in {
        "SRC": "0.1776", "NON": "0.1023", "FO-SOL": "0.0539", "ZO-SOL": "0.0636",
        "NON large": "0.0674", "FO-SOL large": "0.0339", "TAN-SOL": "0.0362",
    }.items():  # fmt: skip
        yield Claim(
            WAKE, f"demo, MAE of {method}", stated, figure(file, "table", "value", method=method), file
        )


def _over_all(page: str, folder: str, stated: Mapping[str, Sequence[str]]) -> Iterator[Claim]:
    """What methods have over all problems that a folder of results has at size small."""
    curves = [
        json.loads(path.read_text(encoding="utf-8")).get("curves", {})
        for path in sorted((protocol.RESULTS / folder).glob("*.json"))
        if not path.stem.endswith("-paper")
    ]
    for method, summary in stated.items():
        ends = [fmean(each) for found in curves if (each := ratios(found, method))]
        rows = [each for found in curves if (each := spent(found, method)) is not None]
        values = (median(rows), median(ends), min(ends), max(ends), len(ends)) if ends else ()
        parts = ("rows, median", "error, median", "error, least", "error, worst", "problems")
        for what, each, value in zip(parts, summary, values, strict=False):
            source = f"{folder}/table.md"  # its summary, from the same files
            yield Claim(page, f"{folder}, {method}: {what}", each, Figure((value,)), source)


def _tangents() -> Iterator[Claim]:
    yield from _over_all(
        "docs/concepts/learned_tangents.md",
        "tangents/fresh",
        {
            "chosen": ("1.05", "1.02", ".69", "1.56", "29"),
            "no-gradient": ("1.00", "1.52", ".41", "54.5", "29"),
        },
    )
    stated = {  # problem -> method -> error over first order's, and rows over its where they are stated
        "ks-26-8": {"chosen": ("1.06", "1.04"), "no-gradient": ("1.67", "")},
        "wake-30k": {"chosen": ("1.02", "1.05"), "no-gradient": ("1.14", "")},
        "gray-scott": {"chosen": ("1.04", "1.05"), "no-gradient": ("39.70", "")},
        "brusselator-20k": {"chosen": ("0.98", "1.06"), "no-gradient": ("2.37", "")},
        "shallow-water": {"chosen": ("1.01", "1.05"), "no-gradient": ("2.47", "")},
        "fitzhugh-nagumo-failing": {"chosen": ("1.01", "1.05"), "no-gradient": ("2.74", "")},
        "double-pendulum": {"chosen": ("1.04", "1.05"), "no-gradient": ("2.19", "")},
        "filter": {"chosen": ("1.14", "1.06"), "no-gradient": ("2.77", "")},
    }
    for name, methods in stated.items():
        file = f"tangents/{name}.json"
        curves = read(file).get("curves", {})
        for method, (error, rows) in methods.items():
            ours = Figure(tuple(ratios(curves, method)))
            page = "docs/applications/boxes.md"
            yield Claim(page, f"{name}, {method}: error over first order's", error, ours, file)
            if rows:
                cost = spent(curves, method)
                ours = Figure() if cost is None else Figure((cost,))
                yield Claim(page, f"{name}, {method}: rows over first order's", rows, ours, file)


def _queries() -> Iterator[Claim]:
    file, place = "query_speed.json", "docs/guide/evaluators.md"
    stated = {
        "training": {"resnet20": "1.9", "resnet56": "1.5", "dncnn": "1.6", "wake": "1.8"},
        "evaluation": {"resnet20": "1.6", "resnet56": "1.1", "dncnn": "1.1", "wake": "1.8"},
    }
    for mode, networks in stated.items():
        for network, value in networks.items():
            published, ours = (
                figure(file, "measured", f"microseconds, mean/{name}", network=network, mode=mode)
                for name in ("published", "difference")
            )
            what = f"{network}, {mode}: the published algorithm's time over that of difference"
            yield Claim(place, what, value, ratio(published, ours), file)


def _wake() -> Iterator[Claim]:
    stated = {
        "wake_flow_small.json": {
            "SRC": ".1542", "NON": ".0717", "PRE": ".0884", "PRE-SR": ".0881", "chain": ".0717",
            "identity": ".0547", "ZO-SOL": ".0558", "TAN-SOL small": ".0506", "FO-SOL": ".0503",
            "NON large": ".0498", "identity large": ".0298", "TAN-SOL": ".0233", "FO-SOL large": ".0221",
        },
        "wake_flow_small_260354.json": {"NON large": ".0294", "TAN-SOL": ".0197", "FO-SOL large": ".0188"},
    }  # fmt: skip
    for file, methods in stated.items():
        for method, value in methods.items():
            what = f"published grids, MAE of {method}" + (", 260,354 weights" if "260354" in file else "")
            yield Claim(WAKE, what, value, figure(file, "table", "value", method=method), file)


def _defence() -> Iterator[Claim]:
    radii = ("certified accuracy at r = 0", "certified accuracy at r = 0.25", "certified accuracy at r = 0.5")
    stated: dict[str, dict[str, tuple[str, ...]]] = {
        "small-b-logits": {
            "none": ("43.0",),
            "mse": ("91.0", "79.0", "41.2"),
            "zo-ds:dct": ("93.3", "77.8", "38.5"),
            "zo-ds:dct@2500000": ("92.2", "78.0", "39.2"),
            "deepzero": ("94.8", "82.5", "49.3"),
            "student@5000": ("96.3", "84.2", "49.2"),
            "student": ("95.7", "83.8", "49.7"),
            "fo-ds": ("96.0", "85.0", "52.7"),
        },
        "small-b-probabilities-3": {"student": ("96.2", "85.3", "50.5")},
        "small-b-labels": {"student": ("94.5", "83.0", "43.0"), "zo-ds:wide": ("92.8", "75.8", "38.3")},
        "small-a-logits": {
            "none": ("", "19.2"),
            "mse": ("", "81.0"),
            "student": ("", "84.0"),
            "fo-ds": ("", "83.5"),
        },
        "few-b-logits": {
            "mse": ("90.0", "77.3", "22.7"),
            "student": ("98.3", "82.7", "38.7"),
            "fo-ds": ("98.7", "83.7", "45.0"),
        },
        "labels-b-labels": {"mse": ("90.0", "78.0", "26.0"), "student": ("97.0", "84.0", "37.0")},
        "shapes-cnn-logits": {
            "mse": ("81.0", "65.0", "42.0"),
            "student": ("82.0", "64.0", "42.0"),
            "fo-ds": ("83.0", "64.0", "37.0"),
        },
    }
    for case, methods in stated.items():
        file = f"table_defense-{case}.json"
        for method, values in methods.items():
            for radius, value in zip(radii, values, strict=False):
                if value:
                    ours = figure(file, "table", radius, 0.01, method=method)
                    yield Claim(DEFENCE, f"{case}, {method}, {radius} (%)", value, ours, file)
    yield from _safeguard()


def _safeguard() -> Iterator[Claim]:
    """The table of a forest and an SVM: accuracy on noisy test images."""
    stated = {
        "forest, logits": (".890", ".896", ".909", ".911", ".911"),
        "forest, labels": (".890", ".890", ".893", ".900", ".912"),
        "svm, logits": (".911", ".931", ".946", ".911", ".921"),
        "svm, labels": (".911", ".911", ".940", ".911", ".920"),
    }
    methods = ("student@2500", "student", "zo-ds:rge", "zo-ds:wide")
    once = {"forest, labels": (".905", ".916"), "svm, labels": (".940", ".950")}
    for file, cases in (
        ("denoised_smoothing_safeguard.json", stated),
        ("denoised_smoothing_safeguard-once.json", once),
    ):
        for case, values in cases.items():
            table = f"boxes/{case}/lines"
            for method, value in zip(methods, values[-len(methods) :], strict=False):
                ours = figure(file, table, "test accuracy", method=method)
                yield Claim(DEFENCE, f"{case}, {method}, noisy test images", value, ours, file)
            if len(values) > len(methods):
                ours = figure(file, table, "test accuracy, start", method=methods[0])
                yield Claim(DEFENCE, f"{case}, start, noisy test images", values[0], ours, file)


_IMAGES: dict[str, dict[str, dict[Any, str]]] = {  # benchmark -> method -> label -> accuracy (%)
    "figure2_cge_vs_rge": {
        "cge": {3700: "86.0", 6670: "93.0", 9640: "94.7"},
        "fo": {3700: "86.0", 6670: "92.3", 9640: "92.3"},
        "rge": {3700: "29.7", 6670: "87.0", 9640: "84.0"},
    },
    "table_smoothing_parameter": {"cge": {0.5: "29.7"}},
    "table_query_number": {"rge": {1: "11", 500: "88"}},
    "figure4_sparsity": {
        "deepzero": {0.9: "97.0", 0.95: "97.7", 0.99: "95.3"},
        "fo-sparse-gradient": {0.9: "98.3", 0.95: "97.7", 0.99: "95.7"},
        "fo-sparse-weight": {0.9: "96.3", 0.95: "95.3", 0.99: "66.7"},
    },
    "figure3_baselines": {
        method: {"ResNet": value}
        for method, value in {
            "deepzero": "95.3", "pattern-search": "62.3", "dfa": "94.3", "fa": "92.7", "align-ada": "91.0",
            "forward-gradient": "25.0", "fo": "98.7",
        }.items()
    },
    "shapes_sparse": {"deepzero": {0.99: "36.4"}, "fo-sparse-gradient": {0.99: "36.2"}},
}  # fmt: skip


def _images() -> Iterator[Claim]:
    for name, methods in _IMAGES.items():
        file = f"{name}/result.json"
        for method, labels in methods.items():
            for label, value in labels.items():
                ours = figure(file, "table", "ours", label=label, method=method)
                yield Claim(IMAGES, f"{name}, {label}, {method} (%)", value, ours, file)
    for method, value in {
        "fo": "95.7",
        "fo-sparse-gradient": "82.0",
        "deepzero": "82.0",
        "rge": "91.3",
    }.items():
        source = "none; `blackbox run image-classification`"
        yield Claim(IMAGES, f"demo, accuracy of {method} (%)", value, Figure(), source)
