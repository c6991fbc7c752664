"""The applications' figures: a table's column, the mean over seeds and its standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean, geometric_mean, median, stdev
from typing import Any

from benchmarks.figures.measured import read
from benchmarks.reinforcement import reached

RADII = ("0", "0.25", "0.5", "0.75")
TIMED = ("TAN-SOL@960", "FO-SOL large@4800")  # of the demo
WAKES = {"demo": "wake_flow_demo.json", "grids": "wake_flow_small.json"}
DEFENCES = {  # name of a figure -> file
    "digits": "table_defense-small-b-logits.json",
    "decimals": "table_defense-small-b-probabilities-3.json",
    "labels": "table_defense-small-b-labels.json",
    "digits a": "table_defense-small-a-logits.json",
    "few": "table_defense-few-b-logits.json",
    "long labels": "table_defense-labels-b-labels.json",
    "shapes": "table_defense-shapes-cnn-logits.json",
}
SAFEGUARDS = {"": "denoised_smoothing_safeguard.json", ", once": "denoised_smoothing_safeguard-once.json"}
IMAGES = (
    *("image_classification_demo", "figure2_cge_vs_rge", "figure3_baselines", "figure4_sparsity"),
    *("shapes_sparse", "shapes_sparsity", "table_query_number", "table_smoothing_parameter"),
)


BASES = {  # a reproduction -> its lines of first order: its own at a label, or one line of a reproduction
    "figure2_cge_vs_rge": ("figure2_cge_vs_rge", None, "fo"),
    "table_query_number": ("figure2_cge_vs_rge", 6670, "fo"),
    "table_smoothing_parameter": ("figure2_cge_vs_rge", 9640, "fo"),
    "shapes_sparsity": ("shapes_sparsity", 0.0, "fo"),
    "shapes_sparse": ("shapes_sparse", None, "fo-sparse-gradient"),
}


def figures() -> dict[str, float]:
    """Figures by name: of the wake, defended classifiers, images, the time of a query, reset environments."""
    return _wake() | _defence() | _safeguard() | _images() | _queries() | _environments()


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean, and ".spread", the standard deviation over seeds, where there are several."""
    return {name: fmean(values)} | ({f"{name}.spread": stdev(values)} if len(values) > 1 else {})


def _over(name: str, own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The mean ratio, its least and its greatest over seeds; of the means where seeds do not match."""
    same = len(own) == len(base)
    ratios = [a / b for a, b in zip(own, base, strict=True)] if same else [fmean(own) / fmean(base)]
    return {name: fmean(ratios), f"{name}.least": min(ratios), f"{name}.most": max(ratios)}


def _by_method(file: str) -> dict[str, list[Mapping[str, Any]]]:
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for line in read(file)["table"]:
        lines.setdefault(line["method"], []).append(line)
    return lines


def _wake() -> dict[str, float]:
    values = {}
    for name, file in WAKES.items():
        for method, lines in _by_method(file).items():
            values |= _spread(f"wake {name}, {method}", [line["value"] for line in lines])
            values[f"wake {name}, {method}, rows"] = fmean(line["rows"] for line in lines)
    grids = {
        method: [line["value"] for line in lines] for method, lines in _by_method(WAKES["grids"]).items()
    }
    for method in ("SRC", "NON", "ZO-SOL", "FO-SOL"):
        for base in ("SRC", "FO-SOL"):
            values |= _over(f"wake grids, {method}, over {base}", grids[method], grids[base])
    of_demo = _by_method(WAKES["demo"])
    replayed, first = ([line["seconds"] for line in of_demo[name]] for name in TIMED)
    values |= _over("wake demo, seconds, TAN-SOL over FO-SOL", replayed, first)
    values["zo.rows"] = values["wake grids, ZO-SOL, rows"] / values["wake grids, FO-SOL, rows"]
    tried: dict[str, list[float]] = {}
    for line in read("wake_rows.json")["tried"]:
        name = f"wake pace, {line['method']}, {line['batch']}, {line['learning rate']:g}"
        tried.setdefault(name, []).append(line["validation"])
    return values | {name: geometric_mean(errors) for name, errors in tried.items()}


def _defence() -> dict[str, float]:
    """Certified accuracies, in percent."""
    values = {}
    for name, file in DEFENCES.items():
        by_method = _by_method(file)
        for radius in RADII:
            column = f"certified accuracy at r = {radius}"
            accuracies = {
                method: [100 * ({line["metric"]: line["value"]} | line["extra"])[column] for line in lines]
                for method, lines in by_method.items()
            }
            for method, own in accuracies.items():
                values |= _spread(f"{name}, {method}, r = {radius}", own)
                if name == "digits" and min(accuracies["fo-ds"]) > 0:
                    values |= _over(f"{name}, {method}, r = {radius}, over fo-ds", own, accuracies["fo-ds"])
    return values


def _safeguard() -> dict[str, float]:
    """Accuracy on noisy test images, before and after."""
    values = {}
    for mark, file in SAFEGUARDS.items():
        for box, found in read(file)["boxes"].items():
            by_method: dict[str, list[Mapping[str, Any]]] = {}
            for line in found["lines"]:
                by_method.setdefault(line["method"], []).append(line)
            for method, lines in by_method.items():
                values |= _spread(f"{box}, {method}{mark}", [line["test accuracy"] for line in lines])
                values[f"{box}, start{mark}"] = fmean(line["test accuracy, start"] for line in lines)
    return values


def _images() -> dict[str, float]:
    """Accuracies in percent, and queries of the demo."""
    values, by_seed = {}, {}
    for name in IMAGES:
        for line in read(f"{name}/result.json")["table"]:
            if line["ours"] is not None:
                figure = f"{name}, {line['label']}, {line['method']}"
                values |= {figure: line["ours"], f"{figure}.spread": line["spread"]}
                by_seed[name, line["label"], line["method"]] = line.get("values") or [line["ours"]]
                if name == "image_classification_demo":
                    values[f"{figure}, queries"] = line["queries"]
    for (name, label, method), own in by_seed.items():
        if name in BASES:
            of, at, base = BASES[name]
            first = by_seed.get((of, label if at is None else at, base))
            if first is not None and method != base:
                values |= _over(f"{name}, {label}, {method}, over first order", own, first)
    return values


def _queries() -> dict[str, float]:
    """The time of a query of the published code over that of one by differences."""
    values = {}
    for case in read("query_speed.json")["measured"]:
        times = case["microseconds, mean"]
        values[f"query, {case['network']}, {case['mode']}"] = times["published"] / times["difference"]
    return values


MARKS = {"cart": 3200, "pendulum": 24_576}  # steps of the environment after which returns are compared


def _environments() -> dict[str, float]:
    """Medians over seeds: return and seconds after as many steps; of the cart the steps to its level too."""
    values = {}
    for name, case in read("reinforcement.json")["cases"].items():
        values[f"{name}, nothing"] = case["nothing"]
        for method, runs in case["runs"].items():
            points = [next(each for each in run["points"] if each["mark"] == MARKS[name]) for run in runs]
            for what in ("return", "seconds"):
                values[f"{name}, {method}, {what}"] = median(point[what] for point in points)
            steps = median(map(reached, runs))
            if name == "cart" and steps < inf:
                values[f"{name}, {method}, reached"] = steps
    return values
