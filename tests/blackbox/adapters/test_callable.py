import functools
import pickle
import warnings
from contextlib import suppress
from typing import Literal

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec, Budgeted
from blackbox.adapters import from_callable
from blackbox.errors import ConfigurationError, DefinitionError, OutputError, RowFailedError
from tests.blackbox.adapters.training import function, gradient_error, loss_drop
from tests.blackbox.boxes import ErrorCase, error_table

X, Y = [ArraySpec("x", (2,))], [ArraySpec("y", (2,))]


def in_numpy(x):
    a, b = x[..., 0], x[..., 1]
    return np.stack([np.sin(a) + 0.5 * b, a * b + b], axis=-1)


def power(exponent, x):
    return x**exponent


def make(f=in_numpy, **settings):
    return from_callable(f, inputs=X, outputs=Y, **settings)


@pytest.mark.parametrize("vectorized", [False, True])
def test_what_the_function_gets_and_how_often(vectorized):
    shapes = []

    def f(x):
        shapes.append((type(x), x.shape))
        return in_numpy(x)

    x = torch.randn(3, 2, dtype=torch.float64)
    box = make(f, vectorized=vectorized)
    torch.testing.assert_close(box(x), function(x), rtol=1e-15, atol=1e-15)
    first, again = (np.ndarray, (3, 2)), (np.ndarray, (2, 2))
    assert shapes == ([first, again] if vectorized else [(np.ndarray, (2,))] * 3)
    assert box.ledger.rows_run == len(x) + 2 * vectorized
    box(x)
    assert box.ledger.rows_run == 2 * len(x) + 2 * vectorized


def test_torch_functions_get_tensors_and_several_arrays_in_their_order():
    def f(x, scale):
        assert isinstance(x, torch.Tensor)
        return x * scale[:, None], x.sum(1)

    box = from_callable(
        f, inputs=[*X, ArraySpec("scale", ())], outputs=[*Y, ArraySpec("total", ())],
        vectorized=True, arrays="torch",
    )  # fmt: skip
    x, scale = torch.randn(4, 5, 2), torch.randn(4, 5)
    scaled, total = box(x, scale)
    assert torch.equal(scaled, x * scale[..., None]) and torch.equal(total, x.sum(-1))


def test_settings_reach_the_box():
    def f(x):
        if x[0] > 1:
            raise ZeroDivisionError("too far")
        return x

    box = make(f, failures="keep", deterministic=False)
    assert not box.deterministic
    assert np.isnan(box(np.array([[0.0, 1], [2, 1]]))).tolist() == [[False] * 2, [True] * 2]
    with pytest.raises(RowFailedError, match=r"row 1 failed.*ZeroDivisionError: too far"):
        make(f)(np.array([[0.0, 1], [2, 1]]))


def test_it_is_pickled_where_its_function_can_be():
    box = pickle.loads(pickle.dumps(make(functools.partial(power, 3))))
    np.testing.assert_array_equal(box(np.array([2.0, 3.0])), [8, 27])


def test_it_is_named_after_its_function():
    assert repr(make()) == "from_callable(in_numpy)"
    assert repr(make(functools.partial(power, 3))) == "from_callable(power)"


@pytest.mark.slow
def test_a_network_is_trained_through_it():
    assert gradient_error(make(vectorized=True)) < 1e-5
    assert loss_drop(make(vectorized=True), steps=200, rows=16) > 100


ERRORS = [
    ErrorCase("called already", lambda: make(3.0), ConfigurationError, ["from_callable, f", "float"]),
    ErrorCase("no kind of array", lambda: make(arrays="jax"), DefinitionError, ["'numpy' or 'torch'"]),
    ErrorCase(
        "no outputs",
        lambda: from_callable(in_numpy, inputs=X, outputs=[]),
        DefinitionError,
        ["from_callable.outputs"],
    ),
    ErrorCase(
        "all rows, but said to take one",
        lambda: make(lambda x: np.zeros((7, 2)))(np.zeros((3, 2))),
        OutputError,
        ["from_callable(", "(7, 2)"],
    ),
    ErrorCase(
        "takes all rows, but not said so",
        lambda: make(lambda x: x.sum(axis=1))(np.zeros((3, 2))),
        RowFailedError,
        ["AxisError", "one row at a time, x (2,); all at once with vectorized=True"],
    ),
]


@error_table(ERRORS)
def test_errors(case):
    with suppress_type_checks():
        case.check()


MIXING = np.random.default_rng(0).normal(size=(3, 3))
OF_ONE_ROW = {  # functions of three numbers, and the shapes of what they give
    "product of a matrix": (lambda x: MIXING @ x, (3,)),
    "numbers by place": (lambda x: x[0] ** 2 + x[1] * x[2], ()),
    "a diagonal": (lambda x: np.diagonal(np.outer(x, x)) if x.ndim == 1 else np.diagonal(x), (3,)),
    "reversed": (lambda x: x[::-1], (3,)),
    "times the first": (lambda x: x * x[0], (3,)),
    "times the last": (lambda x: x * x[-1], (3,)),
    "over its length": (lambda x: x / np.linalg.norm(x), (3,)),
    "less its mean": (lambda x: x - x.mean(axis=0), (3,)),
    "softmax": (lambda x: np.exp(x) / np.exp(x).sum(axis=0), (3,)),
    "rolled": (lambda x: np.roll(x, 1), (3,)),
    "summed up": (lambda x: np.cumsum(x, axis=0), (3,)),
    "sorted": (lambda x: np.sort(x, axis=0), (3,)),
    "slopes": (lambda x: np.gradient(x, axis=0), (3,)),
    "one number for all": (lambda x: np.full(x.shape[:-1], x.sum()), ()),
}


def of_three_numbers(f, shape, arrays: Literal["numpy", "torch"] = "numpy"):
    specs = [ArraySpec("x", (3,))], [ArraySpec("y", shape)]
    return from_callable(f, inputs=specs[0], outputs=specs[1], vectorized=True, arrays=arrays)


@pytest.mark.parametrize("rows", [2, 3, 4, 7])
@pytest.mark.parametrize("name", OF_ONE_ROW)
def test_a_function_of_one_row_is_not_taken_for_one_of_all(name, rows):
    f, shape = OF_ONE_ROW[name]
    x = np.random.default_rng(rows).normal(size=(rows, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(OutputError, RowFailedError):
            of_three_numbers(f, shape)(x)
            assert caught and "vectorized=False" in str(caught[0].message)


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["product of a matrix", "numbers by place"])
def test_as_many_rows_as_numbers_are_told_apart_by_two_of_them(name, arrays):
    f, shape = OF_ONE_ROW[name]
    if arrays == "torch" and shape:
        f = torch.tensor(MIXING).matmul
    box = of_three_numbers(f, shape, arrays)
    with pytest.raises(OutputError, match=r"answers 3 rows, as many as .*, and not 2.*vectorized=False"):
        box(np.ones((3, 3)))
    assert box.ledger.rows_run == 5


OF_ALL_ROWS = {
    "a matrix": (lambda x: x @ MIXING, "numpy"),
    "by number": (np.tanh, "numpy"),
    "softmax": (lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True), "numpy"),
    "backwards": (lambda x: x[:, ::-1], "numpy"),
    "a network": (
        torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)),
        "torch",
    ),
    "five rows alone": (lambda x: x @ MIXING if len(x) == 5 else x[99], "numpy"),
}


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("name", OF_ALL_ROWS)
def test_nothing_is_said_of_a_function_of_all_rows(name, rows):
    f, arrays = OF_ALL_ROWS[name]
    if name == "five rows alone" and rows != 5:
        return
    box = of_three_numbers(f, (3,), arrays)
    box(np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32))  # warnings are errors
    assert box.ledger.rows_run == rows + (3 if rows == 2 else 2)


def test_a_random_function_of_all_rows_is_asked_for_its_shape_alone():
    generator = np.random.default_rng(0)
    box = make(lambda x: x + generator.normal(size=x.shape), vectorized=True, deterministic=False)
    box(np.zeros((4, 2)))
    assert box.ledger.rows_run == 6


def test_rows_are_not_asked_again_beyond_a_budget_nor_after_a_resumed_count():
    box = Budgeted(make(in_numpy, vectorized=True), rows=5)
    box(np.zeros((5, 2)))
    assert box.ledger.rows_run == 5
    resumed = make(in_numpy, vectorized=True)
    resumed.ledger.load_state_dict(box.ledger.state_dict())
    resumed(np.zeros((5, 2)))
    assert resumed.ledger.rows_run == 10
