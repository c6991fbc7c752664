"""The embedded data set: shapes, range, and what is said where scikit-learn is missing."""

import sys

import numpy as np
import pytest

from blackbox.extras import MissingExtraError
from tasks.applications.images import digits


def test_shapes_range_and_labels():
    images, labels = digits.load()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32
    assert labels.shape == (1797,) and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 1
    assert np.array_equal(images * 16, np.round(images * 16))  # the pixels are whole sixteenths
    assert set(labels.tolist()) == set(range(10))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn|sklearn") as caught:
        digits.load()
    assert "pip install" in str(caught.value)
