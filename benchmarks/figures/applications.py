"""The applications' figures: a table's column, the mean over seeds and its standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean, stdev
from typing import Any

from benchmarks.figures.measured import read

RADII = ("0", "0.25", "0.5")
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


def figures() -> dict[str, float]:
    """Figures by name: those of the wake, of defended classifiers, of images, of the time of a query."""
    return _wake() | _defence() | _safeguard() | _images() | _queries()


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean, and ".spread", the standard deviation over seeds, where they differ."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return {name: fmean(values)} | ({f"{name}.spread": spread} if spread else {})


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
            for what in ("rows", "seconds"):
                values[f"wake {name}, {method}, {what}"] = fmean(line[what] for line in lines)
    for figure, what in (("zo.error", ""), ("zo.rows", ", rows")):
        values[figure] = values[f"wake grids, ZO-SOL{what}"] / values[f"wake grids, FO-SOL{what}"]
    tried: dict[str, list[float]] = {}
    for line in read("wake_rows.json")["tried"]:
        name = f"wake pace, {line['method']}, {line['batch']}, {line['learning rate']:g}"
        tried.setdefault(name, []).append(line["validation"])
    return values | {name: geometric_mean(errors) for name, errors in tried.items()}


def _defence() -> dict[str, float]:
    """Certified accuracies, in percent."""
    values = {}
    for name, file in DEFENCES.items():
        for method, lines in _by_method(file).items():
            for radius in RADII:
                column = f"certified accuracy at r = {radius}"
                found = [{line["metric"]: line["value"]} | line["extra"] for line in lines]
                values |= _spread(f"{name}, {method}, r = {radius}", [100 * each[column] for each in found])
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
    values = {}
    for name in IMAGES:
        for line in read(f"{name}/result.json")["table"]:
            if line["ours"] is not None:
                figure = f"{name}, {line['label']}, {line['method']}"
                values |= {figure: line["ours"], f"{figure}.spread": line["spread"]}
                if name == "image_classification_demo":
                    values[f"{figure}, queries"] = line["queries"]
    return values


def _queries() -> dict[str, float]:
    """The time of a query of the published code over that of one by differences."""
    values = {}
    for case in read("query_speed.json")["measured"]:
        times = case["microseconds, mean"]
        values[f"query, {case['network']}, {case['mode']}"] = times["published"] / times["difference"]
    return values
