"""Certified accuracy, ACR, bands, tables and curves, by hand and by other formulas."""

import mpmath
import numpy as np
import pytest

from tasks.applications.denoised_smoothing.certification import (
    Certificate,
    accuracy_band,
    average_certified_radius,
    certified_accuracy,
    plot_certified_accuracy,
)
from tasks.applications.denoised_smoothing.certification import accuracy_table as table
from tasks.errors import DataError
from tasks.report import latex, markdown, pictures

pytestmark = pytest.mark.usefixtures("drawn")


def certificate(idx, predict, radius, label=1, failed=0, hits=0):
    return Certificate(idx, label, predict, radius, 0.0, 90, 0.9, 100, 110, failed, hits)


SOME = [
    certificate(0, 1, 0.25, hits=90),
    certificate(1, 1, 0.6, hits=97),
    certificate(2, 0, 0.9),
    certificate(3, -1, 0.0),
]


def drawn(seed, count=200):
    random = np.random.default_rng(seed)
    radii = np.clip(random.normal(0.4, 0.3, count), 0, None)
    return [certificate(k, int(random.choice([1, 1, 1, 0])), float(r)) for k, r in enumerate(radii)]


def test_certified_accuracy_by_hand():
    radii = [0.0, 0.25, 0.2500001, 0.5, 0.6, 0.7]
    np.testing.assert_array_equal(certified_accuracy(SOME, radii), [0.5, 0.5, 0.25, 0.25, 0.25, 0])


def test_an_abstention_is_wrong_at_every_radius_whatever_the_label():
    assert certified_accuracy([certificate(0, -1, 0.0, label=-1)], 0.0) == [0.0]
    assert average_certified_radius([certificate(0, -1, 0.0, label=-1)]) == 0.0


def test_acr_is_the_area_under_the_curve():
    some = drawn(1)
    grid = (np.arange(200_000) + 0.5) / 100_000  # to a radius of 2
    assert average_certified_radius(some) == pytest.approx(
        certified_accuracy(some, grid).mean() * 2, abs=1e-5
    )
    assert average_certified_radius(SOME) == pytest.approx((0.25 + 0.6) / 4)


@pytest.mark.parametrize("hits", [0, 1, 37, 99, 100])
def test_the_band_is_clopper_and_pearson_s(hits):
    low, high = accuracy_band([hits / 100], 100)

    def tail(p, ks):
        return mpmath.fsum(mpmath.binomial(100, k) * p**k * (1 - p) ** (100 - k) for k in ks)

    # at its ends the count that was seen, or one further out, has a probability of 2.5 %
    assert low[0] == 0 if hits == 0 else abs(tail(low[0], range(hits, 101)) - 0.025) < 1e-9
    assert high[0] == 1 if hits == 100 else abs(tail(high[0], range(hits + 1)) - 0.025) < 1e-9


def test_nothing_has_no_accuracy():
    with pytest.raises(DataError, match="at least one"):
        certified_accuracy([], 0.0)


def test_tables():
    runs = {"none": [SOME], "zo_ds": [[certificate(0, 1, 0.3, failed=2)], [certificate(0, 0, 0.3)]]}
    lines = markdown(table(runs, {"zo_ds": 20_000})).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert cells[0][:4] == ["method", "queries", "r = 0 (%)", "r = 0.25 (%)"]
    assert cells[2] == [
        "none",
        "-",
        "50.0",
        "50.0",
        "25.0",
        "0.0",
        "0.212",
        "46.8",
        "25.0",
        "0",
    ]  # (90 + 97) / 400
    spread = f"50.0 ± {100 * np.std([1, 0], ddof=1):.1f}"
    assert cells[3][:4] == ["zo_ds", "20,000", spread, spread] and cells[3][-1] == "2"
    text = latex(table(runs))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3 and len({line.count("&") for line in rows}) == 1
    assert text.startswith(r"\begin{tabular}{lrrrrrrrr}") and r"zo\_ds" in text
    assert r"r = 0.5 (\%)" in text and r"$\pm$" in text and text.count("%") == text.count(r"\%")


@pytest.mark.parametrize(
    "runs", [{"none": [SOME], "student": [drawn(2), drawn(3)]}, {"none": [[certificate(0, -1, 0.0)]]}]
)
def test_curves_show_each_method_its_band_and_the_cap(tmp_path, monkeypatch, runs):
    drawn_on = []
    monkeypatch.setattr(pictures, "save", lambda made, path: drawn_on.append(made) or path)
    plot_certified_accuracy(tmp_path / "a.png", runs, cap=0.95)
    (axes,) = drawn_on[0].axes
    *curves, cap = axes.get_lines()
    assert [line.get_label() for line in curves] == list(runs)
    for line, method in zip(curves, runs, strict=True):
        radii, shares = np.array(line.get_data())
        expected = np.mean([certified_accuracy(each, radii) for each in runs[method]], axis=0)
        np.testing.assert_allclose(shares, 100 * expected)
        assert line.get_color() == pictures.colour(method)
    if len(runs) > 1:
        assert {0.25, 0.6} <= set(curves[0].get_xdata())  # the steps are where they are
    assert list(cap.get_xdata()) == [0.95, 0.95]
    assert len(axes.collections) == len(runs) and axes.get_xlim()[1] >= 0.95
