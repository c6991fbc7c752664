"""Running rows: halving a block that raises, what is left of failed rows, and broken outputs."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec
from blackbox.errors import ConfigurationError, NonFiniteInputError, OutputError, RowFailedError
from blackbox.failures import Failure, Outcome
from blackbox.running import mark_non_finite
from tests.blackbox.boxes import KINDS, PAIR, STATE, EachBox, ErrorCase, RowsBox, error_table

X = np.stack([np.arange(1.0, 5.0), np.ones(4)], 1)
COUNT = ArraySpec("count", (), "int64")


def answer(given: Any, kind: type = RowsBox, outputs: tuple[ArraySpec, ...] = (STATE,)) -> Any:
    """What becomes of a box that answers this, whatever it is asked; failed rows are to be kept."""
    return kind(lambda state: given, outputs=outputs, failures="keep")(X)


GRAPH = torch.ones(2, requires_grad=True)
ERRORS = [
    ErrorCase("nothing", lambda: answer(None), OutputError, ["RowsBox, output 'state'", "got NoneType"]),
    ErrorCase("text", lambda: answer("no", EachBox), OutputError, ["EachBox, output 'state'", "got str"]),
    ErrorCase(
        "dict", lambda: answer({"state": X}), OutputError, ["got dict", "NumPy array or a torch tensor"]
    ),
    ErrorCase("long-double", lambda: answer(X.astype(np.longdouble)), OutputError, ["ndarray of float128"]),
    ErrorCase("ragged", lambda: answer(([[1], [1, 2]],)), OutputError, ["'state'", "got list"]),
    ErrorCase("tracked-list", lambda: answer(([GRAPH, GRAPH],)), OutputError, ["'state'", "got list"]),
    ErrorCase("too-many", lambda: answer((X, X)), OutputError, ["1 output (state), got 2, in a tuple"]),
    ErrorCase(
        "too-few", lambda: answer(X[..., None, :1], outputs=PAIR), OutputError, ["(field, number), got 1"]
    ),
    ErrorCase("plain-list", lambda: answer([1.0, 2.0], EachBox), OutputError, ["in a list", "numpy.asarray"]),
    ErrorCase("one-row-of-all", lambda: answer(X[0]), OutputError, ["(4, 2), got (2,)", "rows first"]),
    ErrorCase(
        "all-rows-of-one", lambda: answer(X, EachBox), OutputError, ["shape (2,), got (4, 2)", "one row"]
    ),
    ErrorCase("rows-missing", lambda: answer(X[1:]), OutputError, ["(4, 2), got (3, 2)"]),
    ErrorCase("wrong-size", lambda: answer(torch.ones(4, 3)), OutputError, ["'state'", "got (4, 3)"]),
    ErrorCase(
        "integers",
        lambda: answer(X.astype(int)),
        OutputError,
        ["a floating dtype", "got int64", "asarray(state).astype('float32')"],
    ),
    ErrorCase("complex", lambda: answer(X + 1j), OutputError, ["a floating dtype", "got complex128", "real"]),
    ErrorCase(
        "float32-for-float64",
        lambda: answer(X.astype("f4"), outputs=(ArraySpec("y", (2,), "float64"),)),
        OutputError,
        ["'y': expected float64, got float32"],
    ),
    ErrorCase(
        "second-output",
        lambda: answer((X, X[:, 0]), outputs=(STATE, COUNT)),
        OutputError,
        ["output 'count': expected int64, got float64"],
    ),
]


@error_table(ERRORS)
def test_an_output_that_breaks_its_spec_is_an_error_under_keep_too(case):
    case.check()


@pytest.mark.parametrize(
    ("given", "wrong", "failures"),
    [(np.ones(3), "(2,), got (3,)", "raise"), ("no", "of numbers, got str", "keep")],
)
def test_an_output_that_breaks_its_spec_in_one_row_names_that_row(given, wrong, failures):
    box = EachBox(lambda state: given if state[0] == 3 else state, failures=failures)
    with pytest.raises(OutputError) as caught:
        box(X)
    assert wrong in str(caught.value)
    assert str(caught.value).endswith(" That was row 2 (state=[3, 1]) of 4 rows.")


@KINDS
@pytest.mark.parametrize("kind_of_answer", [np.asarray, torch.as_tensor])
def test_numpy_and_torch_answers_are_both_taken(kind, arrays, kind_of_answer):
    box = kind(lambda state: kind_of_answer(np.asarray(state) + 1), arrays=arrays)
    np.testing.assert_array_equal(box(X), X + 1)


@pytest.mark.parametrize("given", [1.5, [1.5], np.float32(1.5), (np.array(1.5),), torch.tensor(1.5)])
def test_a_number_per_row_may_be_a_python_number(given):
    box = EachBox(lambda state: given, outputs=(ArraySpec("loss", ()),))
    np.testing.assert_array_equal(box(X), np.full(4, 1.5))


# Halving


def picky(bad: set[int]) -> Any:
    """A block with a bad row raises; the answers depend on their own row alone."""

    def function(state: Any) -> Any:
        if bad & set(np.asarray(state[:, 0], int).tolist()):
            raise FloatingPointError("bad row in the block")
        return state**2 / 3

    return function


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("pick", ["first", "last", "middle", "two", "all"])
def test_halving_finds_the_bad_rows_and_no_others(rows, pick, arrays):
    bad = {
        "first": {0},
        "last": {rows - 1},
        "middle": {rows // 2},
        "two": {0, rows - 1},
        "all": set(range(rows)),
    }
    x = np.stack([np.arange(float(rows)), np.linspace(1, 2, rows)], 1)
    box = RowsBox(picky(bad[pick]), arrays=arrays, failures="keep")
    clean = RowsBox(picky(set()), arrays=arrays)(x)
    failed = np.isin(np.arange(rows), list(bad[pick]))
    y = box(x)
    np.testing.assert_array_equal(y[~failed], clean[~failed])
    assert np.isnan(y[failed]).all()
    levels = int(np.ceil(np.log2(rows)))
    assert len(box.calls) <= 1 + 2 * levels * len(bad[pick])  # the docstring's bound
    sizes = [len(state) for (state,) in box.calls]
    assert box.ledger.rows_run == sum(sizes)
    if len(bad[pick]) == 1:
        assert sum(sizes) <= 3 * rows + levels  # the block, and about twice its rows again
    assert (box.ledger.rows_failed, box.ledger.rows_asked) == (failed.sum(), rows)


def test_halves_that_answer_from_one_buffer_do_not_overwrite_each_other():
    buffer = np.empty((8, 2))

    def function(state: np.ndarray) -> np.ndarray:
        buffer[: len(state)] = picky({6})(state)
        return buffer[: len(state)]

    x = np.stack([np.arange(8.0), np.ones(8)], 1)
    y = RowsBox(function, failures="keep")(x)
    np.testing.assert_array_equal(y[[0, 1, 2, 3, 4, 5, 7]], (x**2 / 3)[[0, 1, 2, 3, 4, 5, 7]])


def test_under_raise_a_block_is_called_once_and_rows_stop_at_the_first():
    block, each = RowsBox(picky({2})), EachBox(lambda state: picky({2})(state[None])[0])
    for box in (block, each):
        with pytest.raises(RuntimeError):
            box(X)
    assert (len(block.calls), len(each.calls)) == (1, 2)


# What is left behind


@KINDS
def test_a_kept_failure_does_not_hold_on_to_its_arrays(kind, arrays):
    seen: list[weakref.ref[Any]] = []

    def function(state: Any) -> Any:
        seen.append(weakref.ref(state))
        raise ValueError

    box = kind(function, arrays=arrays, failures="keep")
    gc.collect()
    gc.disable()
    try:
        box(X)
        box.calls.clear()
        assert seen and not any(ref() is not None for ref in seen)
    finally:
        gc.enable()


def test_run_rows_gives_failures_as_values():
    box = EachBox(lambda state: picky({2})(state[None])[0], failures="keep")
    outcome = box.run_rows((torch.tensor(X),))
    assert list(outcome.failed) == [1] and outcome.failed[1].failure is Failure.RAISED
    assert outcome.failed[1].sentence().endswith("(FloatingPointError: bad row in the block)")


def test_marking_keeps_the_first_reason():
    values = torch.tensor([[1.0], [float("nan")], [float("inf")]])
    outcome = mark_non_finite(Outcome((values, torch.zeros(3, dtype=torch.int64))))
    assert {row: why.failure for row, why in outcome.failed.items()} == {
        1: Failure.NON_FINITE,
        2: Failure.NON_FINITE,
    }
    outcome.failed[2] = first = Outcome((values,), {2: outcome.failed[1]}).failed[2]
    assert mark_non_finite(outcome).failed[2] is first


class InBlocks(RowsBox):
    max_rows: int | None = 3


def test_calls_are_cut_into_blocks_of_max_rows_and_only_a_bad_block_is_halved():
    sizes: list[int] = []

    def function(state: np.ndarray) -> np.ndarray:
        sizes.append(len(state))
        if (state == 4).any():
            raise ValueError("four")
        return 2 * state

    box = InBlocks(function, failures="keep")
    given = box(np.arange(8.0)[:, None] * np.ones(2))
    assert sizes == [3, 3, 1, 2, 1, 1, 2]  # the second block holds it: halves, then its rows
    np.testing.assert_array_equal(np.isnan(given[:, 0]), np.arange(8) == 4)
    assert box.ledger.rows_run == sum(sizes) and box.ledger.rows_failed == 1
    sizes.clear()
    box.failures = "raise"
    with pytest.raises(RowFailedError, match="four"):
        box(np.arange(8.0)[:, None] * np.ones(2))
    assert sizes == [3, 3]  # nothing after the block that failed


@pytest.mark.parametrize("wrong", [0, -1, 2.0])
def test_blocks_of_no_rows_are_refused(wrong):
    box = InBlocks(lambda state: state)
    with suppress_type_checks():
        box.max_rows = wrong
        with pytest.raises(ConfigurationError, match=r"InBlocks, max_rows: expected a whole number >= 1"):
            box(np.zeros((1, 2)))


@pytest.mark.parametrize("kind", [RowsBox, EachBox])
@pytest.mark.parametrize("fails", [False, True])
def test_a_box_that_changes_settings_of_torch_and_numpy_changes_them_for_itself_alone(kind, fails):
    def function(state: np.ndarray) -> np.ndarray:
        torch.set_default_dtype(torch.float64)
        np.seterr(all="raise")
        if fails:
            raise ValueError("four")
        return state

    before = torch.get_default_dtype(), np.geterr()
    try:
        kind(function, failures="keep")(X)
        assert (torch.get_default_dtype(), np.geterr()) == before
    finally:
        torch.set_default_dtype(before[0])
        np.seterr(**before[1])


def test_of_two_threads_neither_leaves_the_default_dtype_that_the_other_has_set():
    changed, entered, over = Event(), Event(), Event()

    def first(state: np.ndarray) -> np.ndarray:
        torch.set_default_dtype(torch.float64)
        changed.set()
        assert entered.wait(60)
        return state

    def second(state: np.ndarray) -> np.ndarray:
        entered.set()
        assert over.wait(60)
        return state

    before = torch.get_default_dtype()
    try:
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(RowsBox(first), X)
            assert changed.wait(60)
            other = pool.submit(RowsBox(second), X)
            one.result(60)
            over.set()
            other.result(60)
        assert torch.get_default_dtype() == before
    finally:
        torch.set_default_dtype(before)


# Outages


@pytest.mark.parametrize("rows", [8, 16, 33, 300])
@pytest.mark.parametrize("text", ["down", "{box!r} at 0x{number:x}"], ids=["plain", "address"])
def test_a_box_that_is_down_is_asked_a_logarithm_of_times(rows, text):
    calls = []

    def function(state: np.ndarray) -> np.ndarray:
        calls.append(len(state))
        raise ConnectionError(text.format(box="box", number=len(calls)))

    box = RowsBox(function, failures="keep")
    assert np.isnan(box(np.ones((rows, 2)))).all()
    singles = int(np.ceil(np.log2(rows))) | 1
    assert calls == [rows, rows // 2, rows - rows // 2, *[1] * singles]
    assert box.ledger.rows_run == 2 * rows + singles and box.ledger.rows_failed == rows
    assert "ConnectionError" in (box.ledger.first_failure or "")


def test_one_good_row_among_bad_ones_with_one_text_is_kept():
    """The middle row is asked for first, so that halving goes on after one row."""
    rows = 33
    bad = set(range(rows)) - {rows // 2}
    box = RowsBox(picky(bad), failures="keep")
    y = box(np.stack([np.arange(float(rows)), np.ones(rows)], 1))
    np.testing.assert_array_equal(np.isnan(y[:, 0]), np.isin(np.arange(rows), list(bad)))


def test_bad_rows_with_errors_of_their_own_are_all_looked_for():
    def function(state: np.ndarray) -> np.ndarray:
        if len(state) == 1 and state[0, 0] % 2:
            return state
        raise ValueError(f"row {state[0, 0]}")

    y = RowsBox(function, failures="keep")(np.stack([np.arange(16.0), np.ones(16)], 1))
    np.testing.assert_array_equal(np.isnan(y[:, 0]), np.arange(16) % 2 == 0)


def _refused_by_urllib() -> None:
    raise URLError(ConnectionRefusedError(111, "Connection refused"))


def _refused_behind() -> None:
    try:
        raise ConnectionRefusedError(111, "Connection refused")
    except ConnectionRefusedError as error:
        raise RuntimeError("no service") from error


@pytest.mark.parametrize("refuse", [_refused_by_urllib, _refused_behind])
def test_a_refused_connection_is_no_matter_of_rows(refuse):
    calls = []

    def function(state: np.ndarray) -> None:
        calls.append(len(state))
        refuse()

    box = RowsBox(function, failures="keep")
    assert np.isnan(box(np.ones((300, 2)))).all()
    assert calls == [300] and box.ledger.rows_run == 300


@pytest.mark.parametrize("kind", [RowsBox, EachBox])
def test_masked_numbers_are_those_of_a_failed_row(kind):
    """As netCDF4 gives them: behind the mask lies a fill value of 1e36, which passed for an answer."""

    def read(state: np.ndarray) -> np.ma.MaskedArray:
        return np.ma.MaskedArray(np.where(state > 1, 9.97e36, 2 * state), mask=state > 1)

    box = kind(read, failures="keep")
    answer = box(np.array([[0.5, 1.0], [0.25, 3.0], [0.0, -1.0]]))
    np.testing.assert_array_equal(answer, [[1.0, 2.0], [np.nan, np.nan], [0.0, -2.0]])
    assert box.ledger.rows_failed == 1
    with pytest.raises(RowFailedError):
        kind(read)(np.array([[0.25, 3.0]]))


def test_masked_whole_numbers_are_refused_and_a_mask_that_hides_nothing_is_none():
    labels = ArraySpec("labels", (2,), "int64")
    box = RowsBox(lambda state: np.ma.MaskedArray(state.astype(int), mask=state > 1), outputs=(labels,))
    assert (box(np.zeros((3, 2))) == 0).all()
    with pytest.raises(OutputError, match="'labels': expected an array of numbers, got MaskedArray"):
        box(np.full((3, 2), 2.0))


def test_masked_inputs_are_refused_as_others_that_are_not_finite():
    with pytest.raises(NonFiniteInputError):
        RowsBox(lambda state: state)(np.ma.MaskedArray(np.zeros((3, 2)), mask=np.eye(3, 2, dtype=bool)))


@pytest.mark.parametrize("kind", [EachBox, RowsBox])
def test_a_run_that_ends_early_is_a_failed_row_where_others_did_not(kind):
    def ended(state: Any) -> Any:  # as a solver of all rows does that stops at the first end
        values = state.copy()
        return values[..., :1] if (state[..., 0] == 3).any() else values

    box = kind(ended, failures="keep")
    expected = X.copy()
    expected[X[:, 0] == 3] = np.nan
    assert np.array_equal(box(X), expected, equal_nan=True)
    assert np.isnan(box(X[2:3])).all()  # alone in its call, too
    assert np.isnan(box(X[[2, 2, 2]])).all()  # and where all rows of a call end early
    assert box.ledger.rows_failed == 5
    assert "expected shape" in box.ledger.first_failure


def test_where_no_row_ever_had_its_length_the_spec_is_wrong():
    box = EachBox(lambda state: state[:1], failures="keep")
    for _ in range(2):
        with pytest.raises(OutputError, match="expected shape"):
            box(X)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_box_may_differentiate_inside_whatever_mode_the_caller_is_in(mode):
    def forces(state: Any) -> Any:
        place = torch.tensor(state, requires_grad=True)
        return torch.autograd.grad((place**4).sum(), place)[0].numpy()

    box = EachBox(forces)
    with mode():
        values = box(torch.tensor(X))
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert np.allclose(values.numpy(), 4 * X**3, rtol=1e-12)
