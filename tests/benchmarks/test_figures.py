"""Figures that pages state: the file is what the results give, and each marked number is that of the file."""

from __future__ import annotations

import json
import re
from statistics import fmean, median

import numpy as np
import pytest

from benchmarks import figures, protocol, published
from benchmarks.figures import marks, summaries
from benchmarks.tangents.problems import CONTROLLERS, HELD_OUT

TUNED = "first order, tuned, 1"
BESIDE = {
    path.stem: json.loads(path.read_text())["runs"]
    for path in (protocol.RESULTS / "rows/steps").glob("*.json")
}
STEPS = {name: runs for name, runs in BESIDE.items() if name not in HELD_OUT}


def test_the_file_is_what_the_results_give():
    """If not: python -m benchmarks page."""
    assert figures.kept() == pytest.approx(figures.computed(), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("page", marks.pages(), ids=lambda page: page.relative_to(marks.ROOT).as_posix())
def test_marked_numbers_are_those_of_the_file(page):
    """If not: python -m benchmarks page."""
    assert not list(marks.off(page.read_text(encoding="utf-8"), figures.kept()))


@pytest.mark.parametrize("page", ["README.md", "docs/which.md", "docs/index.md"])
def test_on_the_first_pages_every_measured_ratio_is_marked(page):
    text = (marks.ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    left = re.sub(rf"{marks.MARKED.pattern}|`.*?`|\(\S*?\)", "", text)
    assert not re.findall(r"(?<![\w.,-])(?<!Python )(?<!r = )\d*\.\d\d+\b", left)


def _ends(line: str) -> dict[str, float]:
    """A line's error over that of first order tuned at all rows: problem -> the median over seeds."""
    pairs = {
        name: [(run[line], run[TUNED]) for run in runs.values() if line in run]
        for name, runs in STEPS.items()
    }
    return {name: median(a["error"] / b["error"] for a, b in both) for name, both in pairs.items() if both}


def test_what_is_advised_is_the_median_of_each_kind_s_line():
    several, surrogate = _ends("replay, several rates, 0.2"), _ends("surrogate, 0.2")
    ends = {name: surrogate[name] if name in CONTROLLERS else end for name, end in several.items()}
    seven = {"double-pendulum", "gray-scott", "bicycle", "coupled-map", "henon-heiles", "shallow-water"}
    new = [end for name, end in ends.items() if name not in seven | {"torque-pendulum"}]
    found = figures.kept()
    for name, end in (
        ("several.20", median(several.values())),
        ("surrogate.20", median(surrogate.values())),
        ("advised.20", median(ends.values())),
        ("advised.20.worst", max(ends.values())),
        ("advised.20.held-out", median(new)),
        ("several.20.corrections", median(end for name, end in several.items() if name not in CONTROLLERS)),
    ):
        assert found[name] == pytest.approx(end, rel=1e-5), name
    assert found["advised.20.held-out.problems"] == len(new) == len(ends) - 7


@pytest.mark.parametrize(("mark", "share"), [("20", "0.2"), ("05", "0.05")])
def test_the_command_s_figures_are_medians_of_its_trainings(mark, share):
    """Of problems its error over tuned first order's, of trainings its regret against the best other way."""
    ends, equal, regrets = {}, {}, []
    for path in (protocol.RESULTS / "budget").glob("*.json"):
        for seed, by_share in json.loads(path.read_text())["runs"].items():
            others = BESIDE[path.stem].get(seed, {})
            if share in by_share and TUNED in others:
                own = by_share[share]["error"]
                ends.setdefault(path.stem, []).append(own / others[TUNED]["error"])
                ways = ("tangents", "replay", "replay, several rates", "surrogate", "CMA-ES")
                rest = [others[f"{way}, {share}"]["error"] for way in ways if f"{way}, {share}" in others]
                regrets += [own / min(rest)] if rest else []
                if first := others.get(f"first order, tuned, {share}"):
                    equal.setdefault(path.stem, []).append(own / first["error"])
    found = figures.kept()
    assert found[f"command.{mark}"] == pytest.approx(median(map(median, ends.values())), rel=1e-5)
    assert found[f"command.{mark}.problems"] == len(ends)
    assert found[f"command.{mark}.regret"] == pytest.approx(median(regrets), rel=1e-5)
    assert found[f"command.{mark}.equal.above"] == sum(median(seeds) > 1 for seeds in equal.values())


def test_tangents_are_means_over_seeds_and_medians_over_problems():
    ends = []
    for path in (protocol.RESULTS / "tangents").glob("*.json"):
        result = json.loads(path.read_text())
        own, first = (result["curves"].get(method, {}) for method in ("chosen", "first-order"))
        if result["size"] == "small":
            ends.append(
                fmean(own[seed]["errors"][-1] / first[seed]["errors"][-1] for seed in own if seed in first)
            )
    assert figures.kept()["chosen"] == pytest.approx(median(ends), rel=1e-5)
    assert figures.kept()["chosen.worst"] == pytest.approx(max(ends), rel=1e-5)


def test_an_application_s_figure_is_a_mean_with_its_standard_deviation():
    table = json.loads((protocol.RESULTS / "wake_flow_demo.json").read_text())["table"]
    values = [line["value"] for line in table if line["method"] == "TAN-SOL@960"]
    found, name = figures.kept(), "wake demo, TAN-SOL@960"
    assert found[name] == pytest.approx(np.mean(values), rel=1e-5)
    assert found[f"{name}.spread"] == pytest.approx(np.std(values, ddof=1), rel=1e-5)


def test_a_closure_s_figure_is_the_mean_over_seeds_at_the_best_rate():
    lines = json.loads((protocol.RESULTS / "closure.json").read_text())["lines"]
    of_rates = np.array([[run["error"] for run in runs] for runs in lines["learned tangents"].values()])
    best = of_rates[of_rates.mean(1).argmin()]
    assert figures.kept()["closure, learned tangents"] == pytest.approx(best.mean(), rel=1e-5)
    assert figures.kept()["closure, learned tangents.most"] == pytest.approx(best.max(), rel=1e-5)


def test_a_bootstrap_contains_what_is_certain_and_has_the_width_of_a_mean():
    assert summaries.interval({name: [2.0, 2.0] for name in "abc"}) == (2.0, 2.0)
    draw = np.random.default_rng(1)
    problems = {str(number): [value] for number, value in enumerate(draw.normal(size=400))}
    low, high = summaries.interval(problems)
    # the median of n normal numbers has the standard deviation sqrt(pi / 2 / n)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(np.pi / 2 / 400), rel=0.3)
    assert low < median(seeds[0] for seeds in problems.values()) < high


def test_variants_of_a_simulator_are_one_family():
    problems = {"double-pendulum": [1.0, 3.0], "double-pendulum-wall": [4.0], "gray-scott": [5.0]}
    assert summaries.families(problems) == {"double-pendulum": [2.0, 4.0], "gray-scott": [5.0]}


def test_a_marked_number_is_brought_up_to_date_as_the_page_rounds_it():
    known = {"a": 0.7064, "b, c": 1234.5, "d": 0.98, "e": 1.02}
    text = ".71<!--=a--> (0.7<!--=a-->), **1,234<!--=b, c-->** and .9<!--=d-->; 0.4<!--=e-->, 3<!--=e-->"
    today = text.replace(".9<", "1.0<").replace("0.4<", "1.0<").replace("3<", "1<")
    assert marks.mended(text, known) == today == marks.mended(today, known)
    assert list(marks.off(text, known)) == [".9, d: 1.0", "0.4, e: 1.0", "3, e: 1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "It is 1.0<!--=chozen-->.",
            "expected a name of benchmarks/results/figures.json, got 'chozen'.*chosen",
        ),
        ("It is 1.0 <!--=chosen-->.", "expected a number right before <!--=chosen-->"),
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error_that_says_so(text, said):
    with pytest.raises(ValueError, match=f"(?i){said}"):
        marks.mended(text, {"chosen": 1.0})


# The page of published numbers

PUBLISHED = (protocol.RESULTS / "README.md").read_text(encoding="utf-8")


def test_published_numbers_are_on_their_page():
    stated = [
        *(value for methods in published.FIGURE_2.values() for value in methods.values()),
        *(value for row in published.DEFENCE.values() for value in row),
    ]
    assert all(f"| {value:.2f} |" in PUBLISHED for value in stated)
    assert all(f"| {value:.3f} |" in PUBLISHED for value in published.WAKE.values())


def test_a_published_ratio_is_of_the_two_numbers_beside_it():
    rows = re.findall(r"^\| \S+ \| ([\d.]+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|", PUBLISHED, re.MULTILINE)
    assert len(rows) > 20
    for own, base, ratio in rows:
        assert abs(float(own) / float(base) - float(ratio)) < 0.006


def test_what_the_page_says_compares_is_so_in_the_figures():
    """If not: the results have changed, and the sentences of the page are to be read anew."""
    known = figures.kept()
    for size in (3700, 6670, 9640, 12610):
        name = f"figure2_cge_vs_rge, {size}"
        assert known[f"{name}, cge, over first order.least"] > 0.95
        assert (
            size == 6670 or known[f"{name}, rge, over first order.most"] < 1
        )  # a seed of first order failed
    queries = [known[f"table_query_number, {number}, rge"] for number in (1, 10, 50, 250, 500)]
    assert queries == sorted(queries)
    by_mu = [
        known[f"table_smoothing_parameter, {mu}, cge"] for mu in published.SMOOTHING_PARAMETER if mu > 1e-6
    ]
    assert by_mu[0] < 0.5 * min(by_mu[1:]) and min(by_mu[1:]) > 0.95 * max(by_mu[1:])
    for share in ("0.9", "0.95", "0.99"):
        drawn, fixed = (f"shapes_sparsity, {share}, fo-sparse-{kind}" for kind in ("gradient", "weight"))
        assert known[f"{drawn}, over first order.least"] > known[f"{fixed}, over first order.most"]
    ratio, stated = "shapes_sparse, 0.99, deepzero, over first order", published.FIGURE_4[0.99]
    assert (
        known[f"{ratio}.least"]
        < stated["deepzero"] / stated["fo-sparse-gradient"]
        < 1
        < known[f"{ratio}.most"]
    )
    wake = [known[f"wake grids, {method}"] for method in ("SRC", "NON", "ZO-SOL", "FO-SOL")]
    assert wake == sorted(wake, reverse=True)
