"""Float64 answers whose differences the dtype of the caller loses: said once, and only then."""

import warnings

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.errors import PrecisionWarning
from blackbox.wrappers import Cached
from tests.blackbox.boxes import EachBox, RowsBox

ROWS = np.linspace(0.1, 1.0, 12, dtype="float32").reshape(6, 2)


def box(answer, dtype=None, **settings):
    specs = (ArraySpec("x", (2,)),), (ArraySpec("p", (2,), dtype=dtype),)
    return RowsBox(lambda x: answer(x.astype(float)), *specs, **settings)


def pascals(x):
    return 101325 + 2e-3 * np.sin(x)


def test_differences_beside_an_offset_that_float32_loses_are_told_once():
    one = box(pascals)
    said = r"'p': .* got 6 different ones in float64 that become 1: a number of about 101325 .*"
    mend = r"ArraySpec\('p', \(2,\), dtype='float64'\).*offset"
    with pytest.warns(PrecisionWarning, match=said + mend) as caught:
        one(ROWS)
        one(torch.tensor(ROWS))
    assert len(caught) == 1


def test_it_is_told_of_single_rows_and_behind_wrappers_too(tmp_path):
    specs = (ArraySpec("x", (2,)),), (ArraySpec("p", (2,)),)
    single = EachBox(lambda x: pascals(x.astype(float)), *specs)
    for one in (single, Cached(box(pascals), tmp_path / "cache", version="1")):
        with pytest.warns(PrecisionWarning, match="6 different"):
            one(ROWS)


def test_answers_that_become_zero_are_told():
    with pytest.warns(PrecisionWarning, match=r"up to 1e-60 that all become 0 there.*smaller unit"):
        box(lambda x: 1e-60 * x)(ROWS)
    with pytest.warns(PrecisionWarning, match="all become 0"):
        box(lambda x: 1e-60 * x)(ROWS[:1])


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: 1e5 + x,
        lambda x: x.astype("float32") * 2,
        lambda x: np.round(x) + 101325,  # constant in pieces in float64, too
        lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) @ np.ones((2, 2)),  # 1 to rounding
        lambda x: np.zeros_like(x),
        lambda x: np.stack([x[:, 0], 1 + 1e-9 * x[:, 1]], axis=1),  # a tail that hardly changes
        lambda x: np.where(x > 0.5, np.nan, 7.0),
        lambda x: 1e60 * x,
    ],
)
def test_other_boxes_say_nothing(answer):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        box(answer, failures="keep")(ROWS)
        box(answer, failures="keep")(ROWS[:2])


def test_nothing_is_lost_in_float64():
    assert len(np.unique(box(pascals, "float64")(ROWS), axis=0)) == 6
    assert len(np.unique(box(pascals)(ROWS.astype(float)), axis=0)) == 6
