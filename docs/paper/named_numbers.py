"""The numbers of the report, each under the name by which pages ask for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from statistics import fmean, median

from paper.measured import (
    RESULTS,
    ROOT,
    as_budgeted,
    beside,
    checked_gradients,
    curves,
    detections,
    over_first,
    over_tuned,
    read,
    record,
    rows,
)
from paper.summaries import families, interval, middle, quartiles, spread, summary

from benchmarks.catalogue import BENCHMARKS
from benchmarks.rows.report import budgeted
from benchmarks.rows.ways import ALL_ROWS, AS_BENCHMARKED
from benchmarks.tangents.problems import CONTROLLERS
from benchmarks.tangents.report import spent

KERNELS = {  # where decision 77 compared kernels and perceptrons by test errors of seeds 0 to 2
    *("double-pendulum", "double-pendulum-wall", "van-der-pol", "mixed-units", "filter"),
}
LOOKED_AT = KERNELS | {  # where decisions 54, 55 and 61 compared rules of replay so, and their variants
    *("gray-scott", "brusselator", "brusselator-20k", "kuramoto-sivashinsky", "coupled-map", "lorenz-96"),
}

CONTROLS = ("no derivative", "model alone", "stored derivative", "true derivative")


@cache
def numbers() -> dict[str, str]:
    """What each {{name}} of the report stands for."""
    problems = {"problems": str(len(curves())), "unmeasured": str(len(set(curves()) - set(rows())))}
    replays = _ways_to_spend_rows() | _narrow() | _replay_costs() | _controls()
    return problems | replays | _tuning() | _tangents() | _wake() | _trust() | _meshes()


def _ways_to_spend_rows() -> dict[str, str]:
    """Errors of first order, tangents and replay, over those of first order tuned at all rows."""
    texts = summary("fo", over_tuned(AS_BENCHMARKED))
    for share, mark in (("0.2", "20"), ("0.05", "05")):
        ways = {
            "fo": f"first order, tuned, {share}",
            "tangents": f"tangents, {share}",
            "replay": f"replay, {share}",
            "several": f"replay, several rates, {share}",
            "imagined": f"replay, several rates, imagined, {share}",
            "surrogate": f"surrogate, {share}",
        }
        measured = {name: ratios for name, line in ways.items() if (ratios := over_tuned(line))}
        measured["budget"] = as_budgeted(float(share))
        for name, ratios in measured.items():
            texts |= summary(f"{name}.{mark}", ratios)
            texts |= {
                f"{problem}, {name}, {share}": f"{median(each):.2f}" for problem, each in ratios.items()
            }
            texts |= {f"{problem}, {name}, {share}, seeds": _listed(each) for problem, each in ratios.items()}
            texts[f"{name}.{mark}.reach"] = str(sum(median(each) <= 1.05 for each in ratios.values()))
            texts[f"{name}.{mark}.below"] = str(sum(median(each) <= 1 for each in ratios.values()))
            for kind, of_kind in (("controllers", True), ("corrections", False)):
                part = {
                    problem: each for problem, each in ratios.items() if (problem in CONTROLLERS) == of_kind
                }
                if part:
                    texts |= {f"{name}.{mark}.{kind}": f"{middle(part):.2f}", kind: str(len(part))}
        texts |= summary(f"equal.{mark}", as_budgeted(float(share), ways["fo"]))
        texts |= summary(f"gain.{mark}", over_tuned(ways["replay"], ways["tangents"]))
    spent = as_budgeted(0.2)
    low, high = interval(spent)
    texts["budget.20.contains"] = "contains" if low <= 1 <= high else "does not contain"
    texts |= {"families": str(len(families(spent))), "families.20": f"{middle(families(spent)):.2f}"}
    texts["families.20.interval"] = "{:.2f} to {:.2f}".format(*interval(families(spent)))
    over_tangents = chain(*over_tuned("replay, 0.2", "tangents, 0.2").values())
    texts["gain.better"] = str(sum(ratio < 0.995 for ratio in over_tangents))
    over_equal_rows = chain(*as_budgeted(0.2, "first order, tuned, 0.2").values())
    texts["equal.better"] = str(sum(ratio < 1 for ratio in over_equal_rows))
    return texts


def _narrow() -> dict[str, str]:
    """Replay over first order that had a narrow grid, and where no rule was chosen on the data."""
    replayed = over_tuned("replay, 0.2", narrow=True)
    texts = summary("narrow.20", replayed) | summary("narrow.05", over_tuned("replay, 0.05", narrow=True))
    texts |= {f"{name}, narrow, 0.2": f"{median(ratios):.2f}" for name, ratios in replayed.items()}
    for mark, line in (("first order", AS_BENCHMARKED), ("first order, 0.2", "first order, tuned, 0.2")):
        for name, ratios in over_tuned(line, narrow=True).items():
            texts[f"{name}, narrow, {mark}"] = f"{median(ratios):.2f}"
    wakes = [median(ratios) for name, ratios in replayed.items() if name.startswith("wake-")]
    texts["wakes, narrow, 0.2"] = _listed(sorted(wakes))
    texts |= summary("unseen", {name: ratios for name, ratios in replayed.items() if name not in LOOKED_AT})
    chosen_on = KERNELS | {"brusselator"}
    fresh = {name: each[2:] for name, each in replayed.items() if each[2:] and name not in chosen_on}
    return texts | summary("seed 2", fresh)


def _replay_costs() -> dict[str, str]:
    """Rows and seconds of replay at a fifth of the rows, its warnings, and when it pays."""
    texts = {}
    ways: dict[str, Callable[[str], str]] = {
        "replay": lambda problem: "replay, 0.2",
        "several": lambda problem: "replay, several rates, 0.2",
        "budget": lambda problem: budgeted(problem, 0.2),
    }
    for name, line_of in ways.items():
        runs = [
            (problem, run[line], run)
            for problem, runs in rows().items()
            for run in runs.values()
            if (line := line_of(problem)) in run
        ]
        silent = [own["error"] / run[ALL_ROWS]["error"] for _, own, run in runs if not own["warnings"]]
        texts[f"{name}.silent"] = f"{len(silent)} of {len(runs)}"
        texts[f"{name}.silent.worst"] = f"{max(silent):.2f}"
        texts[f"{name}.rows"] = (
            f"{median(own['rows'] / run[AS_BENCHMARKED]['rows'] for _, own, run in runs):.2f}"
        )
        texts[f"{name}.replays"] = f"{median(own['replays'] for _, own, _ in runs):,.0f}"
        for mark, against in (("", AS_BENCHMARKED), (".tuned", ALL_ROWS)):
            seconds: dict[str, list[float]] = {}
            for problem, own, run in runs:
                seconds.setdefault(problem, []).append(own["seconds"] / run[against]["seconds"])
            texts[f"{name}.seconds{mark}"] = f"{middle(seconds):.1f}"
            texts[f"{name}.seconds{mark}.worst"] = f"{max(map(median, seconds.values())):.0f}"
            saved = [
                (own["seconds"] - run[against]["seconds"]) / (run[against]["rows"] - own["rows"])
                for _, own, run in runs
            ]
            texts[f"{name}.even{mark}"] = f"{1000 * median(saved):.0f}"
            texts[f"{name}.even{mark}.most"] = f"{1000 * max(saved):.0f}"
    return texts


COUNTS = "no one two three four five six seven eight nine ten eleven twelve".split()


def _counted(number: int) -> str:
    """In words up to twelve."""
    return COUNTS[number] if number < len(COUNTS) else str(number)


def _tuning() -> dict[str, str]:
    """How many seeds there are, what was not measured, and what first order chose."""
    counts = [len(ratios) for ratios in over_tuned("replay, 0.2", narrow=True).values()]
    seeds = {count: counts.count(count) for count in sorted(set(counts), reverse=True)}
    said = [
        f"{_counted(count)} {'seeds' if count > 1 else 'seed'} of {_counted(number)}"
        for count, number in seeds.items()
    ]
    texts = {"narrow.20.seeds": ", ".join([f"{said[0]} problems", *said[1:]])}
    texts |= {f"time.{name}": BENCHMARKS[name].time for name in ("tangents", "rows", "meshes")}
    texts["unmeasured.names"] = ", ".join(sorted(set(curves()) - set(rows())))
    chosen = [run[ALL_ROWS] for runs in rows().values() for run in runs.values() if "replay, 0.2" in run]
    texts["fo.one"] = f"{sum(run['batch'] == 1 for run in chosen)} of {len(chosen)}"
    texts["fo.four"] = f"{sum(run['rate'] >= 4 for run in chosen)} of {len(chosen)}"
    texts["fo.highest"] = f"{max(run['rate'] for run in chosen):g}"
    texts["fo.tried"] = f"{median(run['tried'] for run in chosen):g}"
    return texts


def _controls() -> dict[str, str]:
    """What replays give with another derivative, beside the learned one's, of the same seeds."""
    texts = {}
    for control in CONTROLS:
        for share in ("0.2", "0.05"):
            both = beside(f"replay, {control}, {share}", f"replay, {share}")
            for problem, (control_ratios, learned_ratios) in both.items():
                texts[f"{problem}, {control}, {share}"] = f"{median(control_ratios):.2f}"
                texts[f"{problem}, {control}, {share}, seeds"] = _listed(control_ratios)
                texts[f"{problem}, beside {control}, {share}, seeds"] = _listed(learned_ratios)
            if both and share == "0.2":
                texts |= summary(control, {name: ratios for name, (ratios, _) in both.items()})
                texts |= summary(f"beside {control}", {name: ratios for name, (_, ratios) in both.items()})
                over = [a / b for pair in both.values() for a, b in zip(*pair, strict=True)]
                texts[f"{control}.worse"] = f"{sum(ratio > 1.05 for ratio in over)} of {len(over)}"
                texts[f"{control}.reach"] = str(sum(median(ratios) <= 1.05 for ratios, _ in both.values()))
    return texts


def _listed(values: Sequence[float], form: str = ".2f") -> str:
    """The values in a sentence: "1.00, 1.02 and 1.10"."""
    shown = [f"{value:{form}}" for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _tangents() -> dict[str, str]:
    """Learned tangents without replay, and their rivals, over first order at the same number of steps."""
    texts = {}
    for folder, mark in (("tangents", ""), ("tangents/fresh", "fresh.")):
        for method in ("chosen", "no-gradient"):
            texts |= summary(f"{mark}{method}", over_first(method, folder), fmean)
            cost = [
                ratio for methods in curves(folder).values() if (ratio := spent(methods, method)) is not None
            ]
            texts[f"{mark}{method}.rows"] = f"{median(cost):.2f}"
            cost = [
                ratio
                for methods in curves(folder).values()
                if (ratio := spent(methods, method, "seconds")) is not None
            ]
            texts[f"{mark}{method}.seconds"] = f"{median(cost):.1f}"
            for name, ratios in over_first(method, folder).items():
                texts[f"{mark}{name}, {method}"] = f"{fmean(ratios):.2f}"
                texts[f"{mark}{name}, {method}, seeds"] = _listed(ratios)
    for method in (
        "emulator-online",
        "emulator-frozen",
        "identity",
        "sparse-cge",
        "rge",
        "eggroll",
        "row-rge",
        "astralora",
    ):
        texts |= summary(method, over_first(method), fmean)
    means = {name: fmean(ratios) for name, ratios in over_first("no-gradient").items()}
    near = {name: mean for name, mean in means.items() if mean <= 1.03}
    texts["no-gradient.enough"] = ", ".join(
        f"{name} ({near[name]:.2f})" for name in sorted(near, key=lambda problem: near[problem])
    )
    wall = curves()["double-pendulum-wall"]
    ends = [curve["errors"][-1] for curve in wall["first-order"].values()]
    texts["wall.spread"] = f"{max(ends) / min(ends):.1f}"
    warned = [bool(curve["warned"]) for curve in wall["chosen"].values()]
    texts["wall.warned"] = f"{sum(warned)} of {len(warned)}"
    (low, high) = quartiles(over_first("first-order-perturbed"))
    texts["perturbed.quartiles"] = f"{low:.2f} to {high:.2f}"
    texts["ks, perturbed"] = _listed(over_first("first-order-perturbed")["ks-26-8"])
    long = read("tangents/ks-26-8-paper.json")["curves"]
    for method, seeds in long.items():
        texts[f"long, {method}"] = f"{seeds['0']['errors'][-1]:.6f}"
    chosen, first = long["chosen"]["0"], long["first-order"]["0"]
    texts["long.rows"] = f"{chosen['rows'][-1] / first['rows'][-1]:.2f}"
    texts["long.seconds"] = f"{chosen['seconds'] / first['seconds']:.1f}"
    for method in ("first-order", "chosen"):
        seconds = [curve["seconds"] for curve in curves()["ks-26-8"][method].values()]
        texts[f"ks.seconds, {method}"] = f"{fmean(seconds):.0f}"
    return texts


def _wake() -> dict[str, str]:
    """Error, rows and seconds of the wake, and of the defence of a classifier."""
    texts = {}
    for method in ("SRC", "NON large", "TAN-SOL@960", "FO-SOL large@960", "FO-SOL large@4800"):
        lines = [row for row in read("wake_flow_demo.json")["table"] if row["method"] == method]
        values = [row["value"] for row in lines]
        texts[f"wake, {method}"] = spread(values if len(set(values)) > 1 else values[:1], ".4f")
        texts[f"wake, {method}, rows"] = f"{fmean(row['rows'] for row in lines):,.0f}"
        texts[f"wake, {method}, seconds"] = f"{fmean(row['seconds'] for row in lines):,.0f}"
    lines = read("table_defense-small-b-logits.json")["table"]
    for method in ("student", "fo-ds"):
        accuracies = [
            100 * r["extra"]["certified accuracy at r = 0.25"] for r in lines if r["method"] == method
        ]
        texts[f"defence, {method}"] = spread(accuracies, ".1f")
    lines = read("wake_flow_small.json")["table"]
    for key, column in (("zo.error", "value"), ("zo.rows", "rows")):
        zo, fo = (fmean(r[column] for r in lines if r["method"] == name) for name in ("ZO-SOL", "FO-SOL"))
        texts[key] = f"{zo / fo:.2f}" if column == "value" else f"{zo / fo:.0f}"
    return texts


def _trust() -> dict[str, str]:
    """How many wrong gradients checks find, and how many right ones they call wrong."""
    usual = "Tangents of usual strength alone"
    texts = {}
    for name, line, behind in (
        ("rows", "rows' cosine below .896", "## Figures"),
        ("rule", "**the rule now**", "## Figures"),
        ("usual.rows", "rows' cosine below .9 ", usual),
        ("usual.rule", "**the rule now**", usual),
    ):
        rule = detections(line, behind)
        texts[f"trust.{name}.found"] = (
            f"{rule.found + rule.fresh_found:,} of {rule.wrong + rule.fresh_wrong:,}"
        )
        texts[f"trust.{name}.share"] = f"{rule.found_share:.0f} %"
        texts[f"trust.{name}.false"] = (
            f"{rule.false + rule.fresh_false:,} of {rule.right + rule.fresh_right:,}"
        )
        texts[f"trust.{name}.false.share"] = f"{rule.false_share:.1f} %"
        texts[f"trust.{name}.fresh"] = (
            f"{100 * rule.fresh_found / rule.fresh_wrong:.0f} % of the wrong ones and "
            f"{100 * rule.fresh_false / rule.fresh_right:.0f} % false alarms"
        )
    wrong = [gradient.agreement for gradient in checked_gradients() if gradient.cosine < 0.8]
    right = [gradient.agreement for gradient in checked_gradients() if gradient.cosine >= 0.8]
    texts["points"] = f"{len(checked_gradients()):,}"
    texts["points.wrong"] = f"{len(wrong):,}"
    texts["points.found"] = f"{sum(agreement < 0.5 for agreement in wrong):,}"
    texts["points.false"] = f"{sum(agreement < 0.5 for agreement in right):,}"
    texts["points.right"] = f"{len(right):,}"
    texts["points.share"] = f"{100 * sum(agreement < 0.5 for agreement in wrong) / len(wrong):.0f} %"
    page = (ROOT / "docs" / "concepts" / "learned_tangents.md").read_text(encoding="utf-8")
    words = r"found (\d+) of the (\d+) that were wrong \(cosine below .8\), with (\d+)"
    ((detected, wrongs, false),) = re.findall(words, page)
    texts["trust.all.share"] = f"{100 * int(detected) / int(wrongs):.0f} %"
    rule = detections("**the rule now**")
    texts["trust.all.found"] = f"{detected} of {wrongs}"
    texts["trust.all.false"] = f"{false} of {rule.right + rule.fresh_right}"
    (late,) = re.findall(r"first warning: (\d+) of\s+([\d,]+)", record(60))
    return texts | {"late": f"{late[0]} of {late[1]}"}


def _meshes() -> dict[str, str]:
    """Cosines of learned vector-Jacobian products on meshes, and errors of trainings through them."""
    texts = {}
    for path in sorted((RESULTS / "meshes").glob("*.json")):
        result = read(f"meshes/{path.name}")
        for nodes, ways in result["vectors"].items():
            for way, measured in ways.items():
                texts[f"mesh, {path.stem}, {nodes}, {way}"] = (
                    f"{measured['white']:.3f} / {measured['smooth']:.3f}"
                )
        for way, measured in result.get("training", {}).get("318", {}).items():
            exact = result["training"]["318"]["exact"]["error"]
            texts[f"mesh, {path.stem}, training, {way}"] = f"{measured['error'] / exact:.2f}"
    layouts = [
        (f"{path.stem}, {int(nodes):,} nodes", ways["layout"])
        for path in sorted((RESULTS / "meshes").glob("*.json"))
        for nodes, ways in read(f"meshes/{path.name}")["vectors"].items()
    ]
    missed = [
        f"{name} ({cosines['white']:.2f} / {cosines['smooth']:.2f})"
        for name, cosines in layouts
        if cosines["white"] < 0.9
    ]
    texts["mesh.missed"] = "; ".join(missed)
    texts["mesh.missed.count"] = f"{_counted(len(missed))} of {len(layouts)}"
    return texts
