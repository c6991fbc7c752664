"""The check of layouts: which vectors are lines of cells, and do not say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackbox import ArraySpec, BlackBoxFunction, Grid
from blackbox.conformance import check_black_box

SIZE = 20


def box_of(step, layout: Any = "auto", forced=True):
    x, a = (ArraySpec(name, (SIZE,), layout=layout) for name in "xa")

    class Line(BlackBoxFunction):
        inputs = (x, a) if forced else (x,)
        outputs = (x,)

        def evaluate_rows(self, *arrays):
            return step(*arrays)

    return Line()


def lorenz(x, a):
    for _ in range(2):
        x = x + 0.02 * ((np.roll(x, -1, 1) - np.roll(x, 2, 1)) * np.roll(x, 1, 1) - x + 8 + a)
    return x


def between_walls(x, a):
    padded = np.pad(x, ((0, 0), (1, 1)))
    return x + 0.1 * (padded[:, 2:] - 2 * x + padded[:, :-2]) + 0.1 * a


MIX = np.random.default_rng(0).standard_normal((SIZE, SIZE))
ORDER = np.random.default_rng(1).permutation(SIZE)


def all_to_all(x, a):
    return x + 0.01 * np.tanh(x @ MIX) + 0.01 * a @ MIX


def shuffled(x, a):
    back = np.argsort(ORDER)
    return between_walls(x[:, ORDER], a[:, ORDER])[:, back]


def finding(box, dtype="float32"):
    draws = np.random.default_rng(2)
    samples = [draws.standard_normal((4, SIZE)).astype(dtype) for _ in box.inputs]
    return check_black_box(box, samples, processes=False, rows=400).finding("layout")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lines_of_cells_are_told_with_how_they_end(dtype):
    told = finding(box_of(lorenz), dtype)
    assert told.verdict.value == "warning" and (told.number or 0) > 0.9
    assert "'x' and 'a'" in told.sentence and "blackbox.Grid(periodic=True)" in told.sentence
    told = finding(box_of(between_walls), dtype)
    assert told.verdict.value == "warning" and "layout='grid'" in told.sentence


@pytest.mark.parametrize("step", [all_to_all, shuffled], ids=["all to all", "shuffled"])
def test_what_is_no_line_is_none_though_each_number_responds_most_to_its_own(step):
    told = finding(box_of(step))
    assert told.verdict.value == "ok" and "no lines" in told.sentence


def test_nor_numbers_that_respond_to_their_own_alone_nor_what_has_a_layout():
    told = finding(box_of(lambda x: x**2, forced=False))
    assert told.verdict.value == "ok" and "alone" in told.sentence
    for layout in (None, Grid(periodic=True)):
        assert "leaves open" in finding(box_of(lorenz, layout)).sentence
