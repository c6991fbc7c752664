"""Specs: what they accept, what they normalise, and what they refuse where it is written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import DefinitionError
from tests.blackbox.boxes import STATE, ErrorCase, error_table

ALL_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64]
ALL_DTYPES += [torch.uint8, torch.bool, torch.complex64]


def spec(*values: Any, **keywords: Any) -> ArraySpec:
    return ArraySpec(*values, **keywords)


def define(**body: Any) -> type:
    """A subclass called Broken with this body."""
    return type("Broken", (BlackBoxFunction,), {"evaluate": lambda self, state: state, **body})


ERRORS = [
    ErrorCase(
        "name-is-no-identifier", lambda: spec("my field", ()), DefinitionError, ["'my field'", "letters"]
    ),
    ErrorCase("name-is-a-keyword", lambda: spec("lambda", ()), DefinitionError, ["'lambda'"]),
    ErrorCase("name-is-empty", lambda: spec("", ()), DefinitionError, ["identifier"]),
    ErrorCase("name-is-no-text", lambda: spec(3, ()), DefinitionError, ["got 3"]),
    ErrorCase("shape-is-a-number", lambda: spec("x", 3), DefinitionError, ["'x', shape", "got 3", "()"]),
    ErrorCase("shape-is-text", lambda: spec("x", "34"), DefinitionError, ["tuple of sizes", "'34'"]),
    ErrorCase("size-is-zero", lambda: spec("x", (2, 0)), DefinitionError, ["positive", "(2, 0)"]),
    ErrorCase("size-is-minus-one", lambda: spec("x", (-1, 2)), DefinitionError, ["(-1, 2)", "leading"]),
    ErrorCase("size-is-a-bool", lambda: spec("x", (True,)), DefinitionError, ["(True,)"]),
    ErrorCase("size-is-a-float", lambda: spec("x", (2.0,)), DefinitionError, ["whole sizes", "(2.0,)"]),
    ErrorCase(
        "bounds-turned", lambda: spec("x", (), bounds=(1, 0)), DefinitionError, ["'x', bounds", "(1, 0)"]
    ),
    *(
        ErrorCase(
            f"bounds-{bounds!r}", lambda b=bounds: spec("x", (2,), bounds=b), DefinitionError, ["bounds"]
        )
        for bounds in [(1, 1), (0,), (0, 1, 2), 3, "ab", (float("nan"), 1), (float("inf"), None)]
    ),
    ErrorCase(
        "bounds-by-number", lambda: spec("x", (2,), bounds=([0, 0], [1, 1])), DefinitionError, ["all numbers"]
    ),
    ErrorCase("dtype-unknown", lambda: spec("x", (), "float16"), DefinitionError, ["'x', dtype", "float64"]),
    ErrorCase("dtype-of-torch", lambda: spec("x", (), torch.float32), DefinitionError, ["as a string"]),
    ErrorCase("dtype-in-a-list", lambda: spec("x", (), ["float32"]), DefinitionError, ["['float32']"]),
    ErrorCase(
        "no-comma",
        lambda: define(inputs=(STATE), outputs=(STATE,)),
        DefinitionError,
        ["Broken.inputs", "trailing comma"],
    ),
    ErrorCase("list", lambda: define(inputs=[STATE], outputs=(STATE,)), DefinitionError, ["Broken.inputs"]),
    ErrorCase(
        "empty", lambda: define(inputs=(STATE,), outputs=()), DefinitionError, ["Broken.outputs", "()"]
    ),
    ErrorCase(
        "no-spec", lambda: define(inputs=("x",), outputs=(STATE,)), DefinitionError, ["ArraySpec", "'x'"]
    ),
    ErrorCase(
        "same-names",
        lambda: define(inputs=(STATE, STATE), evaluate=lambda self, a, b: a),
        DefinitionError,
        ["Broken.inputs", "different names", "'state', 'state'"],
    ),
]


@error_table(ERRORS)
def test_a_spec_that_makes_no_sense_is_refused(case):
    case.check()


@pytest.mark.parametrize(
    "dtype, accepted",
    [(None, {torch.float32, torch.float64})]
    + [(name, {getattr(torch, name)}) for name in ("float32", "float64", "int32", "int64", "uint8", "bool")],
)
def test_accepts(dtype, accepted):
    assert {one for one in ALL_DTYPES if ArraySpec("x", (), dtype).accepts(one)} == accepted


@pytest.mark.parametrize("dtype", [None, "float32", "float64", "int32", "int64", "uint8", "bool"])
def test_integers_are_neither_floating_nor_differentiable(dtype):
    one = ArraySpec("x", (), dtype)
    floating = one.torch_dtype is None or one.torch_dtype.is_floating_point
    assert (one.floating, one.differentiable) == (floating, floating)
    assert not ArraySpec("x", (), dtype, differentiable=False).differentiable


def test_a_shape_of_any_sequence_becomes_a_tuple_so_that_specs_compare_and_hash():
    assert len({spec("x", [2, 3]), spec("x", (2, 3)), spec("x", torch.zeros(2, 3).shape)}) == 1


@pytest.mark.parametrize(
    ("bounds", "ends"),
    [
        (None, (-math.inf, math.inf)),
        ((None, None), (-math.inf, math.inf)),
        ((0, None), (0.0, math.inf)),
        ((-math.inf, 2), (-math.inf, 2.0)),
        ([torch.tensor(0.0), 1], (0.0, 1.0)),
    ],
)
def test_bounds_may_have_one_side(bounds, ends):
    one = spec("x", (3,), scale=5.0, bounds=bounds)
    assert one.ends == ends and hash(one) == hash(spec("x", (3,), scale=5.0, bounds=bounds))
    drawn = one.usual_numbers(np.random.default_rng(0), 200)
    one_number = spec("x", (), bounds=bounds).usual_numbers(np.random.default_rng(0))
    assert isinstance(one_number, np.ndarray) and ends[0] <= one_number <= ends[1]
    assert drawn.shape == (200, 3) and (drawn >= ends[0]).all() and (drawn <= ends[1]).all()


def test_numbers_without_bounds_are_standard_normal_times_the_scale():
    drawn = spec("x", (2,), scale=[5.0, 0.1]).usual_numbers(np.random.default_rng(3), 4)
    assert (drawn == np.random.default_rng(3).standard_normal((4, 2)) * [5.0, 0.1]).all()
