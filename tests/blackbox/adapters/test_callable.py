import functools
import pickle

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec, ConfigurationError, DefinitionError, OutputError, RowFailedError
from blackbox.adapters import from_callable
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
    assert shapes == ([(np.ndarray, (3, 2))] if vectorized else [(np.ndarray, (2,))] * 3)


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
