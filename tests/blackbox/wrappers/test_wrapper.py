"""Wrappers: everything passes through, one ledger and one policy a stack, at any depth."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import Wrapper
from blackbox.errors import ConfigurationError, DefinitionError
from blackbox.failures import Outcome
from tests.blackbox.boxes import KINDS, PAIR, Doubling, EachBox, ErrorCase, RowsBox, error_table


class Plain(Wrapper):
    """Passes everything through."""


class Recording(Wrapper):
    """Remembers how many rows it handed on."""

    def __init__(self, box: Any) -> None:
        super().__init__(box)
        self.sizes: list[int] = []

    def run_rows(self, inputs: tuple[torch.Tensor, ...]) -> Outcome:
        self.sizes.append(len(inputs[0]))
        return super().run_rows(inputs)


@suppress_type_checks
def wrap(box: Any) -> Any:
    return Plain(box)


ERRORS = [
    ErrorCase(
        "function", lambda: wrap(np.sin), ConfigurationError, ["Plain, box", "BlackBoxFunction", "ufunc"]
    ),
    ErrorCase("class", lambda: wrap(Doubling), ConfigurationError, ["Plain, box", "got ABCMeta"]),
]


@error_table(ERRORS)
def test_only_a_box_can_be_wrapped(case):
    case.check()


@KINDS
@pytest.mark.parametrize("depth", [1, 3])
def test_a_stack_answers_as_its_box(kind, arrays, depth):
    stack: Any = kind(lambda a, b: (a + b[..., None, None], b), PAIR, PAIR, arrays)
    inner = stack
    for _ in range(depth):
        stack = Plain(stack)
    field, number = torch.ones(2, 4, 2, 3), torch.arange(8.0).reshape(2, 4)
    for found, truth in zip(stack(field, number), inner(field, number), strict=True):
        assert torch.equal(found, truth)
    assert (stack.inputs, stack.outputs, stack.arrays) == (inner.inputs, inner.outputs, arrays)
    assert stack.ledger is inner.ledger
    assert (inner.ledger.calls, inner.ledger.rows_asked, inner.ledger.rows_run) == (2, 16, 16)
    assert repr(stack) == "Plain(" * depth + kind.__name__ + ")" * depth


def test_the_policy_is_one_for_the_stack():
    box = EachBox(lambda state: state)
    stack = Plain(Plain(box))
    stack.failures = "keep"
    assert box.failures == stack.failures == stack.box.failures == "keep"
    x = np.array([[1.0, 1.0], [np.nan, 1.0]])
    np.testing.assert_array_equal(stack(x), [[1, 1], [np.nan, np.nan]])
    box.failures = "raise"
    assert stack.failures == "raise"


def test_failures_are_counted_once_and_a_wrapper_sees_finite_rows_alone():
    stack = Recording(Plain(EachBox(lambda state: 1 / (state - 2), failures="keep")))
    with np.errstate(divide="ignore"):
        y = stack(np.array([[1.0, 1.0], [2.0, 1.0], [np.inf, 0.0]]))
    np.testing.assert_array_equal(y, [[-1, -1], [np.nan, np.nan], [np.nan, np.nan]])
    ledger = stack.ledger
    assert (stack.sizes, ledger.rows_run, ledger.rows_failed, ledger.rows_skipped) == ([2], 2, 1, 1)


def test_deterministic_is_the_inner_boxs():
    box = RowsBox(lambda state: state)
    box.deterministic = False
    assert not Plain(Plain(box)).deterministic


def test_evaluate_rows_is_the_inner_boxs():
    np.testing.assert_array_equal(Plain(Doubling()).evaluate_rows(np.ones((1, 2))), [[2, 2]])


def test_a_pickled_stack_still_has_one_ledger():
    stack = Plain(Plain(Doubling()))
    stack(np.ones(2))
    twin = pickle.loads(pickle.dumps(stack))
    twin(np.ones((3, 2)))
    assert twin.ledger is twin.box.box.ledger
    assert (stack.ledger.rows_run, twin.ledger.rows_run) == (1, 4)


@pytest.mark.parametrize("method", ["evaluate", "evaluate_rows"])
def test_a_wrapper_that_would_never_do_its_work_is_refused(method):
    with pytest.raises(DefinitionError, match=r"Silent.*run_rows"):
        type("Silent", (Wrapper,), {method: lambda self, x: x})
