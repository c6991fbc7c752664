"""What the project's own check says of each adapter: nothing."""

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.adapters import CommandLine, TorchModule, from_callable
from blackbox.conformance import check_black_box
from tests.blackbox.adapters.training import function

X, Y = (ArraySpec("x", (2,)),), (ArraySpec("y", (2,)),)


class Function(torch.nn.Module):
    def forward(self, x):
        return function(x)


def in_torch(x):
    return function(x)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("box", [
    from_callable(in_torch, inputs=X, outputs=Y, vectorized=True, arrays="torch"),
    from_callable(in_torch, inputs=X, outputs=Y, arrays="torch"),
    TorchModule(Function(), X, Y, max_rows=16),
], ids=["rows", "row", "module"])  # fmt: skip
def test_functions_and_modules(box):
    report = check_black_box(box, processes=False, seed=1)
    assert not report.faults, str(report)


def test_programs(tmp_path):
    box = CommandLine(
        ["awk", "-F,", '{ printf "%.17g,%.17g\\n", sin($1) + 0.5 * $2, $1 * $2 + $2 > "y.csv" }', "x.csv"],
        X, Y, input_files={"x": "x.csv"}, output_files={"y": "y.csv"}, vectorized=True, timeout=60,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(3, 2))
    np.testing.assert_allclose(box(x), function(torch.from_numpy(x)).numpy(), rtol=1e-14)
    report = check_black_box(
        box, np.random.default_rng(1).normal(size=(16, 2)), rows=400, processes=False, seed=1
    )
    assert not report.faults, str(report)
