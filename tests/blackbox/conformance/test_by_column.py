"""A table with columns of several units: the step of the last digit is said by column if they differ."""

import numpy as np

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.conformance import check_black_box
from blackbox.conformance.report import by_column


class Table(BlackBoxFunction):
    """Three columns of a size each, printed with so many digits."""

    inputs, outputs = (ArraySpec("x", ()),), (ArraySpec("table", (4, 3)),)

    def __init__(self, sizes, digits):
        self.sizes, self.digits = sizes, digits
        super().__init__()

    def evaluate(self, x):
        values = np.outer(np.sin(float(x) + np.arange(4)) + 3, self.sizes)
        return np.vectorize(lambda value: float(f"{value:.{self.digits}g}"))(values)


def said(box):
    samples = np.random.default_rng(0).uniform(0, 1, 12)
    report = check_black_box(box, [samples], rows=400, processes=False)
    return {finding.check: finding.sentence for finding in report.findings}


def test_the_last_digits_of_a_table_in_several_units_are_said_by_column():
    found = said(Table([1.0, 1e4, 1e-3], 6))  # numbers from 2 to 4: their sixth digit is 1e-5 of them
    assert "along the last axis: 0.1 in column 2 of 3, 1e-08 in column 3" in found["quantisation"]


def test_columns_of_one_size_are_said_together():
    assert not any("last axis" in sentence for sentence in said(Table([1.0, 2.0, 1.0], 6)).values())
    assert by_column(np.array([1.0, np.nan, 0.0])) == ""
