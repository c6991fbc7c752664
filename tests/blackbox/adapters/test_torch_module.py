import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

from blackbox import ArraySpec, Cached
from blackbox.adapters import TorchModule
from blackbox.errors import ConfigurationError, OutputError
from blackbox.wrappers.identity import identity
from tests.blackbox.adapters.training import function, gradient_error, loss_drop
from tests.blackbox.boxes import ErrorCase, error_table

X, Y = (ArraySpec("x", (2,)),), (ArraySpec("y", (2,)),)


class Function(nn.Module):
    def forward(self, x):
        return function(x)


class Recorder(nn.Module):
    """Remembers, outside of itself, what it was called with."""

    calls: ClassVar[list] = []

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 3.0, dtype=dtype))

    def forward(self, x):
        Recorder.calls.append((len(x), x.dtype, x.device, torch.is_grad_enabled()))
        return x * self.weight


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def test_it_is_a_frozen_copy_in_evaluation_mode():
    network = linear()
    network(torch.randn(50, 2))  # running statistics that differ from the batch's
    x = torch.randn(6, 2)
    box = TorchModule(network, X, Y)
    expected = network.eval()(x).detach()
    network.train()
    assert torch.equal(box(x), expected)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(box(x), expected)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in box.module.parameters())


@pytest.mark.parametrize("max_rows, sizes", [(None, [7]), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_chunks_have_at_most_max_rows_and_change_nothing(max_rows, sizes):
    Recorder.calls.clear()
    x = torch.randn(7, 2)
    assert torch.equal(TorchModule(Recorder(), X, Y, max_rows=max_rows)(x), 3 * x)
    assert [size for size, *_ in Recorder.calls] == sizes
    assert not any(graph for *_, graph in Recorder.calls)


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize("callers", [torch.float32, torch.float64])
def test_the_module_gets_its_own_precision_and_the_caller_the_caller_s(own, callers):
    Recorder.calls.clear()
    given = TorchModule(Recorder(own), X, Y)(torch.tensor([[0.5, 0.25]], dtype=callers))
    assert Recorder.calls[0][1] == own
    assert given.dtype == callers and given.tolist() == [[1.5, 0.75]]


def test_integers_and_arrays_of_numpy_go_in_and_several_outputs_come_out():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, index, x):
            return self.table(index) + x, index + 1

    module = Lookup()
    box = TorchModule(
        module,
        [ArraySpec("index", (), "int64"), *X],
        [*Y, ArraySpec("next", (), "int64")],
        max_rows=2,
    )
    x, index = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32), np.array([3, 0, 1, 1, 2])
    y, following = box(index, x)
    np.testing.assert_array_equal(y, module.table.weight.detach().numpy()[index] + x)
    np.testing.assert_array_equal(following, index + 1)


def test_its_device_is_the_module_s_or_the_one_asked_for():
    assert TorchModule(Recorder(), X, Y).device == torch.device("cpu")
    assert TorchModule(nn.Identity(), X, X).device == torch.device("cpu")  # without a parameter
    meta = TorchModule(Recorder(), X, Y, device="meta")  # a device that every machine has
    assert meta.module.weight.device.type == "meta"


@pytest.mark.needs("gpu")
def test_rows_are_moved_to_its_device_and_back():
    Recorder.calls.clear()
    x = torch.randn(5, 2)
    given = TorchModule(Recorder(), X, Y, device="cuda", max_rows=2)(x)
    assert {device.type for _, _, device, _ in Recorder.calls} == {"cuda"}
    assert given.device.type == "cpu" and torch.equal(given, 3 * x)


def test_it_is_pickled_with_its_weights():
    box, x = TorchModule(linear(), X, Y, max_rows=2), torch.randn(5, 2)
    assert torch.equal(pickle.loads(pickle.dumps(box))(x), box(x))


def test_its_identity_is_that_of_its_weights_and_settings():
    assert identity(TorchModule(linear(0), X, Y)) == identity(TorchModule(linear(0), X, Y, max_rows=2))
    assert identity(TorchModule(linear(0), X, Y)) != identity(TorchModule(linear(1), X, Y))
    slopes = (TorchModule(nn.LeakyReLU(slope), X, X) for slope in (0.1, 0.2))
    assert len({identity(box) for box in slopes}) == 2


class Scale(nn.Module):
    """What it gives depends on an attribute that neither its printed form nor its numbers tell."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_module_is_frozen_as_others_are():
    module = nn.Linear(2, 2)
    box = TorchModule(torch.jit.script(module), X, X, max_rows=3)
    x = torch.randn(5, 2)
    given = box(x)
    torch.testing.assert_close(given, module(x).detach())
    assert not given.requires_grad
    assert [p.requires_grad for p in box.module.parameters()] == [False, False]
    assert all(p.requires_grad for p in module.parameters())


def test_a_cache_does_not_take_modules_with_other_settings_for_each_other(tmp_path):
    kinds = [Scale, lambda factor: nn.Sequential(nn.ReLU(), Scale(factor))]
    boxes = [TorchModule(make(factor), X, X) for make in kinds for factor in (2.0, 3.0)]
    x = np.ones((1, 2))
    answers = [Cached(box, tmp_path / "answers")(x)[0, 0] for box in boxes]
    assert answers == [2.0, 3.0] * len(kinds)
    again = [TorchModule(make(factor), X, X) for make in kinds for factor in (2.0, 3.0)]
    assert [identity(box) for box in again] == [identity(box) for box in boxes]


def test_a_module_that_cannot_be_told_from_others_asks_for_a_version(tmp_path):
    module = nn.Sequential(Scale(memoryview(b"2")))
    module.__deepcopy__ = lambda memo: module  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigurationError, match=r"\['0'\]\.factor.*version='1'"):
        Cached(TorchModule(module, X, X), tmp_path / "answers")
    Cached(TorchModule(module, X, X), tmp_path / "answers", version="1")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_module_is_known_by_a_version(tmp_path):
    box = TorchModule(torch.jit.script(Scale(2.0)), X, X)
    with pytest.raises(ConfigurationError, match=r"ScriptModule.*version='1'"):
        Cached(box, tmp_path / "answers")
    known = [Cached(box, tmp_path / "answers", version=text).identity for text in "121"]
    assert known[0] == known[2] != known[1]


@pytest.mark.slow
def test_a_network_is_trained_through_it():
    box = TorchModule(Function(), X, Y, max_rows=10)
    assert gradient_error(box) < 1e-5
    assert loss_drop(box, steps=200, rows=16) > 100


class Dictionary(nn.Module):
    def forward(self, x):
        return {"y": x}


class RowsMixed(nn.Module):
    """Two rows too many in the first chunk, two too few in the second: the sum is right."""

    def forward(self, x):
        return torch.zeros(len(x) + (2 if x[0, 0] == 0 else -2), 2)


class Sometimes(nn.Module):
    def forward(self, x):
        return (x, x) if x[0, 0] == 0 else x


def called(module):
    return lambda: TorchModule(module, X, Y, max_rows=4)(torch.arange(16.0).reshape(8, 2))


ERRORS = [
    ErrorCase("function", lambda: TorchModule(torch.sin, X, Y), ConfigurationError, ["from_callable"]),
    ErrorCase(
        "no rows",
        lambda: TorchModule(Function(), X, Y, max_rows=0),
        ConfigurationError,
        ["max_rows", "got 0"],
    ),
    ErrorCase(
        "no device",
        lambda: TorchModule(Function(), X, Y, device="tpu"),
        ConfigurationError,
        ["device", "'tpu'", "Take 'cpu'"],
    ),
    ErrorCase("dictionary", called(Dictionary()), OutputError, ["got dict", "Return"]),
    ErrorCase("rows", called(RowsMixed()), OutputError, ["expected shape (4, 2)", "(6, 2)"]),
    ErrorCase("outputs", called(Sometimes()), OutputError, ["expected 1 output (y), got 2"]),
]


@error_table(ERRORS)
def test_errors(case):
    with suppress_type_checks():
        case.check()
