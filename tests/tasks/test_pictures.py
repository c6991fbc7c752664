import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from benchmarks.images.baselines import WithoutBackpropagation
from tasks.applications.denoised_smoothing import DenoisedSmoothing
from tasks.applications.image_classification import ImageClassification
from tasks.applications.wake_flow import WakeFlow
from tasks.configuration import names
from tasks.errors import ProblemError
from tasks.methods.by_name import METHODS
from tasks.problem import problems
from tasks.report import Curve, pictures, plots

pytestmark = pytest.mark.usefixtures("drawn")
KINDS = [WakeFlow, DenoisedSmoothing, ImageClassification, WithoutBackpropagation]

# fmt: off
# Machado, Oliveira and Fernandes (2009), severity 1.0: how colours look with each kind of vision
VISION = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
}
# fmt: on


def lab(rgb):
    """CIE L*a*b* (D65) of linear sRGB."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(matrix @ rgb, 0, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_methods_are_told_apart_with_any_vision(vision):
    seen = {}
    every = [*pictures.LOOKS.values(), *(look for kind in KINDS for look in kind.looks.values())]
    for code in {*(code for code, _ in every), pictures.REFERENCE}:  # some share one
        rgb = np.array(to_rgb(code))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen[code] = lab(np.clip(VISION[vision] @ linear, 0, 1))
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 10, (one, other)


def test_a_method_has_one_colour_and_one_mark_everywhere():
    with pictures.palette(WakeFlow.looks):
        assert pictures.colour("ZO-SOL") == WakeFlow.looks["ZO-SOL"][0]
        assert pictures.colour("tangents") == pictures.LOOKS["tangents"][0]
    with pictures.palette(DenoisedSmoothing.looks):
        assert pictures.colour("zo-ds:cge@5000") == pictures.colour("zo-ds") != pictures.colour("mse")
    assert "ZO-SOL" not in pictures.LOOKS  # which the engine does not know
    assert pictures.colour("Reference") == "#000000"
    assert pictures.colour("something else") == pictures.colour("something else")


def test_every_method_of_every_problem_has_its_own_colour_and_mark():
    found = pictures.looks(METHODS)
    assert set(METHODS) <= set(pictures.LOOKS)
    assert len({colour for colour, _ in found.values()}) == len(found)
    assert len({mark for _, mark in found.values()}) == len(found)  # without colour, too


@pytest.mark.parametrize("kind", KINDS)
def test_methods_of_a_shipped_problem_have_a_look_of_their_own_in_every_figure(kind):
    looks = {**pictures.LOOKS, **kind.looks}
    own = [method for method in kind.methods if method in looks]
    assert set(own) == set(kind.methods)
    assert len({looks[method] for method in own}) == len(own)
    small = [looks[method][1] for method in own if not method.endswith(" large")]
    assert len(set(small)) == len(small)  # a larger network has its method's mark
    assert {looks[method][0] for method in own}.isdisjoint({pictures.REFERENCE})
    shared = [method for method in METHODS if method not in own]
    with pictures.palette(kind.looks):
        every = pictures.looks([*own, *shared])
    assert all(every[method] == looks[method] for method in own)
    assert len(set(every.values())) == len(every)


def test_methods_of_a_problem_are_told_apart_in_a_figure():
    found = pictures.looks(["tangents", "my own way", "another", "third", "zo-ds:cge@5", "zo-ds:cge@9"])
    assert found["tangents"] == pictures.LOOKS["tangents"]
    assert len(set(found.values())) == 6


def test_panels_show_a_field_of_each_method_in_one_scale_of_colours():
    fields = {"a": {"u": np.array([[0.0, 1.0], [2.0, np.nan]])}, "b": {"u": np.full((2, 2), -3.0)}}
    made = pictures.panels(fields, lambda axes, arrays: 2 * arrays["u"], colours="T (K)")
    *panels, bar = made.axes
    assert [axes.get_title() for axes in panels] == ["a", "b"] and bar.get_ylabel() == "T (K)"
    assert {axes.images[0].get_clim() for axes in panels} == {(-6.0, 6.0)}
    np.testing.assert_array_equal(panels[1].images[0].get_array(), np.full((2, 2), -6.0))


@pytest.mark.parametrize(
    ("low", "colours", "scale"),
    [(-2.0, "RdBu_r", (-4, 4)), (-0.1, "viridis", (-0.1, 4)), (1.0, "viridis", (1, 4))],
)
def test_zero_is_the_middle_of_the_colours_where_a_field_has_both_signs(low, colours, scale):
    fields = {"a": {"u": np.array([[low, 4.0], [2.0, 2.0]])}}
    (image,) = pictures.panels(fields, lambda axes, arrays: arrays["u"]).axes[0].images
    assert image.get_cmap().name == colours and image.get_clim() == pytest.approx(scale)
    scattered = pictures.panels(fields, lambda axes, arrays: axes.scatter([0, 1], [0, 1], c=arrays["u"][0]))
    assert (
        scattered.axes[0].collections[0].get_cmap().name == "viridis"
    )  # those that an artist has are its own


def test_a_long_flat_field_fills_its_panel_and_an_aspect_is_kept():
    fields = {"a": {"flat": np.ones((7, 64)), "square": np.ones((7, 8))}}

    def height(name, **axes):
        made = pictures.panels(fields, lambda axes, arrays: arrays[name], **axes)
        made.draw_without_rendering()
        box = made.axes[0].get_window_extent()
        return box.height / box.width

    assert height("square") == pytest.approx(7 / 8)
    assert height("flat") == pytest.approx(height("square", aspect="auto")) and height("flat") > 1
    assert height("flat", aspect="equal") == pytest.approx(7 / 64)


def test_panels_stand_in_lines_of_so_many_methods():
    fields = {name: {"u": np.full((2, 2, 2), place)} for place, name in enumerate("abc")}
    made = pictures.panels(fields, lambda axes, arrays, row: arrays["u"][row], rows=2, columns=2)
    places = [axes for axes in made.axes if axes.images and axes.get_visible()]
    lines = {round(axes.get_subplotspec().rowspan.start): [] for axes in places}
    for axes in places:
        lines[axes.get_subplotspec().rowspan.start].append(axes.images[0].get_array().max())
    assert lines == {0: [0, 1], 1: [0, 1], 2: [2], 3: [2]}
    assert sum(not axes.get_visible() for axes in made.axes) == 2


def test_panels_take_curves_artists_and_several_rows():
    fields = {name: {"u": np.arange(6.0).reshape(2, 3)} for name in ("tangents", "none")}
    made = pictures.panels(fields, lambda axes, arrays, row: arrays["u"][row], rows=2, xlabel="cell")
    assert len(made.axes) == 4 and {axes.get_xlabel() for axes in made.axes} == {"cell"}
    assert [axes.get_title() for axes in made.axes] == ["tangents", "none", "", ""]
    (line,) = made.axes[2].get_lines()
    assert line.get_ydata().tolist() == [3, 4, 5] and line.get_color() == pictures.colour("tangents")
    levels = [0, 2, 9]
    shown = pictures.panels(
        fields, lambda axes, arrays: axes.contourf(arrays["u"], levels=levels), colours="K"
    )
    assert len(shown.axes) == 3  # the levels are the scale
    fields["none"]["u"] *= 10
    with pytest.raises(ProblemError, match="contours of the same levels in every panel, got 2 sets"):
        pictures.panels(fields, lambda axes, arrays: axes.contourf(arrays["u"]))
    drawn = pictures.panels(fields, lambda axes, arrays: axes.scatter([0, 1], [0, 1], c=[5, 7]))
    assert drawn.axes[0].collections[0].get_clim() == (5, 7)


def test_curves_side_by_side_have_one_range_of_heights_unless_one_would_be_a_flat_line():
    def drawn(*heights, **axes):
        fields = {str(number): {"u": height * np.arange(3.0)} for number, height in enumerate(heights)}
        made = pictures.panels(fields, lambda axes, arrays: arrays["u"], **axes)
        return [place.get_ylim() for place in made.axes]

    first, second = drawn(1.0, 2.0)
    assert first == second and first[1] >= 4.0
    assert drawn(1.0, 2.0, ylim=(0, 1)) == [(0, 1), (0, 1)]
    small, large = drawn(1.0, 1000.0)  # each its own: 2 is nothing beside 2,000
    assert small[1] < 3 and large[1] > 1000
    log = drawn(1.0, 2.0, yscale="log")
    assert log[0] == log[1]
    fields = {"a": {"u": np.ones(2)}, "b": {"u": np.arange(2.0)}}
    rows = pictures.panels(fields, lambda axes, arrays, row: (1 + 9 * row) * arrays["u"], rows=2)
    above, below = (tuple(place.get_ylim() for place in rows.axes[line : line + 2]) for line in (0, 2))
    assert len(set(above)) == len(set(below)) == 1 and below[0][1] > 5 * above[0][1]  # rows have their own


def curve(rows, values, second=1.0):
    steps = np.arange(len(rows))
    return Curve(steps, np.array(rows, dtype=float), steps * second, np.array(values, dtype=float))


def test_training_shows_each_seed_and_their_mean_at_common_steps():
    found = {
        "rge": {0: curve([0, 10, 20], [4, 2, 1]), 1: curve([0, 30], [8, np.nan]), 2: curve([0, 20], [6, 4])}
    }
    rows, time = plots.training(found, y="validation").axes
    *seeds, mean = rows.get_lines()
    assert [line.get_ydata().tolist() for line in seeds] == [[4, 2, 1], [8], [6, 4]]  # NaN is left out
    assert mean.get_xydata().tolist() == [[0, 6]]  # at step 1 one seed has no figure, step 2 not all have
    assert rows.get_xscale() == time.get_xscale() == "linear"
    (alone,) = plots.training({"rge": {0: found["rge"][0]}}, y="validation").axes[0].get_lines()
    assert alone.get_xdata().tolist() == [0, 10, 20]


def test_the_axis_of_rows_is_logarithmic_where_methods_are_far_apart():
    found = {
        "tangents": {0: curve([0, 50, 100], [4, 2, 1])},
        "cge": {0: curve([0, 20_000, 40_000], [4, 3, 2])},
    }
    made = plots.training(found, y="validation", levels={"none": 4.0})
    rows, time = made.axes
    assert rows.get_xscale() == "log" and time.get_xscale() == "linear"
    level, tangents, cge = rows.get_lines()
    assert level.get_ydata() == [4.0, 4.0]
    assert tangents.get_xdata().tolist() == [50, 100] and cge.get_xdata().tolist() == [20_000, 40_000]
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["none", "tangents", "cge"]


def test_a_figure_below_zero_has_a_linear_axis_and_no_rows_an_axis_of_steps():
    made = plots.training({"rge": {0: curve([0, 0, 0], [-1, 500, 2])}}, y="score")
    assert made.axes[0].get_yscale() == "linear"
    assert made.axes[0].get_xlabel() == "optimiser steps"


def test_hours_are_not_shown_in_seconds():
    made = plots.training({"rge": {0: curve([0, 1, 2], [3, 2, 1], second=3600 * 4)}}, y="score")
    assert made.axes[1].get_xlabel() == "time in steps (h)"
    assert made.axes[1].get_lines()[0].get_xdata().tolist() == [0, 4, 8]


def test_a_unit_with_dollars_is_no_formula(tmp_path):
    y, found = "cost ($/h, 0.1 $/h^)", {"cge": {0: curve([1, 2], [3.0, 2.0])}}
    made = plots.training(found, y=y)
    shown = imread(pictures.save(made, tmp_path / "shown.png"))
    made.axes[0].set_ylabel(y.replace("$", r"\$"), parse_math=True)
    assert np.array_equal(shown, imread(pictures.save(made, tmp_path / "escaped.png")))


def test_smoothing_is_the_mean_of_neighbours():
    smooth = curve(range(7), [1, 3, np.nan, 5, 6, 8, 9]).smooth(points=3)
    assert smooth.values.tolist() == [1, 3, 5.5, 8.5]
    assert smooth.steps.tolist() == [0, 2, 4, 6]  # it ends where training ends


def test_a_figure_is_as_large_as_it_was_asked_for(tmp_path):
    figure, _ = pictures.figure(width=4, height=3)
    path = pictures.save(figure, tmp_path / "a.png", dots_per_inch=100)
    assert imread(path).shape[:2] == (300, 400)


def test_the_same_figure_gives_the_same_file(tmp_path):
    def draw(name):
        figure, axes = pictures.figure()
        axes[0, 0].plot([0, 1000, 20000], [1, 2, 3])
        return pictures.save(figure, tmp_path / name).read_bytes()

    assert draw("a.png") == draw("b.png")


@pytest.mark.slow
def test_no_pyplot_is_involved():
    code = (
        "import sys; from tasks.report import pictures; pictures.figure(); "
        "sys.exit('matplotlib.pyplot' in sys.modules or 'matplotlib.figure' not in sys.modules)"
    )
    root = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("decades", [0.05, 0.2, 0.5, 0.8, 0.98, 1.1, 1.4, 1.6, 2.2, 4.0, 9.0])
@pytest.mark.parametrize("low", [2.3e-4, 0.07, 1.0, 480.0, 6.1e4])
def test_numbers_on_logarithmic_axes_do_not_overprint(tmp_path, low, decades):
    made, axes = pictures.figure(8.0, 3.1, columns=2, sharey=True)
    ends = [low, low * 10**decades]
    axes[0, 0].loglog(ends, ends)
    axes[0, 1].semilogx(ends, ends)
    pictures.save(made, tmp_path / "log.png")
    for axis in (axes[0, 0].xaxis, axes[0, 0].yaxis, axes[0, 1].xaxis):
        place = 0 if axis.axis_name == "x" else 1
        low_end, high_end = sorted(axis.get_view_interval())
        every = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        texts = [
            tick.label1
            for tick in every
            if tick.label1.get_text() and low_end <= tick.get_loc() <= high_end and tick.label1.get_visible()
        ]
        spans = sorted(
            (box.min[place], box.max[place]) for box in (text.get_window_extent() for text in texts)
        )
        assert 2 <= len(texts) <= 12
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("rows", [17_712, 99_000, 742_000, 1_240_000])
def test_numbers_of_rows_do_not_overprint(tmp_path, rows):
    counts = np.linspace(0, rows, 9)
    curve = Curve(np.arange(9), counts, np.linspace(0, 9, 9), np.linspace(1, 2, 9))
    made = plots.training({"rge": {0: curve}}, y="loss")
    pictures.save(made, tmp_path / "rows.png")
    texts = [text for text in made.axes[0].get_xticklabels() if 0 <= text.get_position()[0] <= rows]
    spans = sorted((box.x0, box.x1) for box in (text.get_window_extent() for text in texts))
    assert len(spans) >= 3
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


def test_ticks_that_were_set_by_hand_stay(tmp_path):
    made, axes = pictures.figure()
    axes[0, 0].semilogx([1, 8], [0, 1])
    axes[0, 0].set_xticks([1, 3, 7], ["one", "three", "seven"])
    pictures.save(made, tmp_path / "hand.png")
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()] == ["one", "three", "seven"]


def test_runs_of_a_shipped_problem_are_compared_in_the_colours_that_it_declares():
    kind = problems.shipped(names.PROBLEMS["wake-flow"])
    assert kind is WakeFlow and problems.shipped("tests.tasks.problems:Steering") is None
