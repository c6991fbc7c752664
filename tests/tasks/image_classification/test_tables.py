"""Sentences about a run say no more than its table does."""

from __future__ import annotations

from tasks.image_classification import tables


def test_methods_with_the_same_number_in_the_table_are_said_to_be_equal():
    means = {"fo": 0.953, "rge": 0.7834, "deepzero": 0.7831, "fa": 0.117}
    assert tables._order(means) == "fo > rge = deepzero > fa"
    assert tables._order({"fo": 0.5}) == "fo"
