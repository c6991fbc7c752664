"""The contract: what a class must have, what a call promises, and both policies for failed rows."""

from __future__ import annotations

import copy
import pickle
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction, Ledger
from blackbox.errors import (
    BudgetError,
    ConfigurationError,
    DefinitionError,
    NonFiniteInputError,
    OutputError,
    RowFailedError,
)
from tests.blackbox.boxes import KINDS, PAIR, STATE, Doubling, EachBox, ErrorCase, RowsBox, error_table

NAN, INF = float("nan"), float("inf")
COUNT = ArraySpec("count", (), "int64")


def rows_of(*first: float) -> np.ndarray:
    """States `(rows, 2)` whose first entries are these, the second ones 1."""
    return np.stack([np.array(first), np.ones(len(first))], axis=1)


def grumble(bad: set[float], error: type[BaseException] = ValueError) -> Any:
    """Three times the state; raises where a row's first entry is among the bad."""

    def function(state: Any) -> Any:
        for first in np.atleast_2d(np.asarray(state))[:, 0]:
            if float(first) in bad:
                raise error(f"cannot take {first:g}")
        return 3 * state

    return function


# Definition


def define(parent: type = BlackBoxFunction, abstract: bool = False, **body: Any) -> Any:
    """A subclass called Broken with this body, made anew."""
    return type(parent)("Broken", (parent,), body, abstract=abstract)


def parent_with_specs() -> Any:
    return define(abstract=True, inputs=(STATE,), outputs=(STATE,))


def one(self: Any, state: Any) -> Any:
    return 2 * state


def two(self: Any, state: Any, other: Any) -> Any:
    return state


@suppress_type_checks
def with_policy(policy: Any) -> Any:
    return EachBox(grumble(set()), failures=policy)


def changed(**attributes: Any) -> Any:
    """A complete box, one of whose attributes was set to nonsense afterwards, called."""
    box = EachBox(grumble(set()))
    vars(box).update(attributes)
    return box(rows_of(1))


SPECS: dict[str, Any] = {"inputs": (STATE,), "outputs": (STATE,)}
DEFINITION_ERRORS = [
    ErrorCase(
        "neither",
        lambda: define(**SPECS),
        DefinitionError,
        ["Broken", "evaluate_rows", "neither", "abstract"],
    ),
    ErrorCase(
        "neither-in-child", lambda: define(parent_with_specs()), DefinitionError, ["Broken", "neither"]
    ),
    ErrorCase(
        "abstract-called", lambda: parent_with_specs()()(rows_of(1)), DefinitionError, ["Broken", "neither"]
    ),
    ErrorCase(
        "too-few-parameters",
        lambda: define(inputs=PAIR, outputs=(STATE,), evaluate=one),
        DefinitionError,
        ["Broken.evaluate", "(self, field, number)", "too many positional"],
    ),
    ErrorCase(
        "too-many-parameters",
        lambda: define(**SPECS, evaluate_rows=two),
        DefinitionError,
        ["Broken.evaluate_rows", "(self, state)", "'other'"],
    ),
    ErrorCase(
        "parameters-against-the-parents-specs",
        lambda: define(parent_with_specs(), evaluate=two),
        DefinitionError,
        ["Broken.evaluate", "'other'"],
    ),
    ErrorCase(
        "arrays", lambda: define(**SPECS, evaluate=one, arrays="jax"), DefinitionError, ["arrays", "'jax'"]
    ),
    ErrorCase(
        "arrays-later", lambda: changed(arrays="Torch"), DefinitionError, ["EachBox.arrays", "'Torch'"]
    ),
    ErrorCase(
        "specs-later", lambda: changed(outputs=[STATE]), DefinitionError, ["EachBox.outputs", "[ArraySpec"]
    ),
    ErrorCase(
        "no-specs", lambda: define(evaluate=one)()(rows_of(1)), DefinitionError, ["Broken.inputs", "got None"]
    ),
    ErrorCase(
        "policy", lambda: with_policy("ignore"), ConfigurationError, ["EachBox", "raise, keep", "'ignore'"]
    ),
    ErrorCase("policy-later", lambda: changed(failures="kep"), ConfigurationError, ["failures", "'kep'"]),
]


@error_table(DEFINITION_ERRORS)
def test_an_incomplete_box_is_refused_by_name(case):
    case.check()


class Later(BlackBoxFunction):
    """Specs by a cached property."""

    @cached_property
    def inputs(self) -> tuple[ArraySpec, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (STATE,)

    outputs = (STATE,)
    evaluate = one


@pytest.mark.parametrize(
    "make",
    [
        lambda: define(**SPECS, evaluate=one),
        lambda: define(parent_with_specs(), evaluate_rows=one),
        lambda: define(**SPECS, evaluate=staticmethod(lambda state: 2 * state)),
        lambda: define(**SPECS, evaluate=lambda self, *arrays: 2 * arrays[0]),
        lambda: define(**SPECS, evaluate=lambda self, state, factor=2: factor * state),
        lambda: define(inputs=property(lambda self: (STATE,)), outputs=(STATE,), evaluate=one),
        lambda: define(define(abstract=True, evaluate=one), **SPECS),
        lambda: define(define(**SPECS, evaluate=one)),
        lambda: Later,
        lambda: Doubling,
    ],
    ids="plain inherited static star default property abstract grandchild cached no-super".split(),
)
def test_ways_to_write_a_box(make):
    x = rows_of(1, -2, 5)
    np.testing.assert_array_equal(make()()(x), 2 * x)


def test_the_other_method_is_not_there():
    with pytest.raises(TypeError, match="EachBox gives evaluate, not evaluate_rows"):
        EachBox(grumble(set())).evaluate_rows(rows_of(1))
    with pytest.raises(TypeError, match="RowsBox gives evaluate_rows, not evaluate"):
        RowsBox(grumble(set())).evaluate(rows_of(1)[0])


def test_where_both_methods_are_given_rows_go_together():
    box = define(**SPECS, evaluate=lambda self, state: -state, evaluate_rows=one)()
    np.testing.assert_array_equal(box(rows_of(1)), 2 * rows_of(1))


@pytest.mark.parametrize("copied", [lambda box: pickle.loads(pickle.dumps(box)), copy.deepcopy])
def test_a_pickled_box_gives_the_same_answers_and_counts_for_itself(copied):
    box = Doubling(1.5)
    box.failures = "keep"
    twin = copied(box)
    x = rows_of(1, NAN, 2)
    np.testing.assert_array_equal(twin(x), box(x))
    twin(x)
    assert (box.ledger.calls, twin.ledger.calls, twin.failures) == (1, 2, "keep")


# What a call promises


@KINDS
@pytest.mark.parametrize("numpy", [True, False], ids=["numpy", "torch"])
def test_inputs_are_not_written_to_and_outputs_share_no_memory(kind, arrays, numpy):
    buffer = np.full((2,), 9.0) if kind is EachBox else np.full((3, 2), 9.0)
    own = torch.from_numpy(buffer) if arrays == "torch" else buffer

    def scribble(state: Any) -> Any:
        own[...] = 2 * state
        state[...] = NAN
        return own

    x = rows_of(1, 2, 3)
    given = x if numpy else torch.from_numpy(x)
    answer = kind(scribble, arrays=arrays, failures="keep")(given)
    np.testing.assert_array_equal(x, rows_of(1, 2, 3))
    np.testing.assert_array_equal(answer, 2 * x)
    before = buffer.copy()
    answer[...] = -1
    np.testing.assert_array_equal(buffer, before)


@KINDS
def test_an_identity_hands_out_a_copy(kind, arrays):
    x = torch.ones(3, 2)
    kind(lambda state: state, arrays=arrays)(x).zero_()
    assert x.eq(1).all()


@KINDS
def test_no_graph_goes_in_or_out(kind, arrays):
    weight = torch.nn.Parameter(torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    layer = torch.nn.Linear(2, 2)
    inside = []

    def network(state: Any) -> Any:
        inside.append(state)
        return torch.tanh(torch.as_tensor(state) @ weight)  # a tensor with a graph where grad is on

    box = kind(network, arrays=arrays)
    x = layer(torch.randn(4, 2, generator=torch.Generator().manual_seed(1)))
    assert x.requires_grad
    y = box(x.detach())
    assert not y.requires_grad and y.grad_fn is None
    torch.testing.assert_close(y, torch.tanh(x @ weight).detach())
    assert not any(isinstance(s, torch.Tensor) and s.requires_grad for s in inside)
    (x.sum() + (weight * y.sum()).sum()).backward()  # y is a constant for autograd
    torch.testing.assert_close(weight.grad, torch.full((2, 2), float(y.sum())))


def test_a_torch_box_may_differentiate_inside():
    def newton(state: Any) -> Any:
        with torch.enable_grad():
            state.requires_grad_()
            (slope,) = torch.autograd.grad((state**3).sum(), state)
        return slope + 0 * state

    x = torch.tensor([[1.0, 2.0]])
    y = RowsBox(newton, arrays="torch")(x)
    assert not y.requires_grad and not x.requires_grad
    torch.testing.assert_close(y, 3 * x**2)


# Failed rows under "raise"


def grumbling(kind: type, bad: set[float], **keywords: Any) -> Any:
    return kind(grumble(bad), **keywords)(rows_of(1, 2, 3, 4))


def answering(kind: type, values: list[float]) -> Any:
    """Rows come back as these values."""
    lookup = np.array([0.0, *values])
    return kind(lambda state: np.stack([lookup[state[..., 0].astype(int)]] * 2, -1))(
        rows_of(*range(1, len(values) + 1)).astype("f4")
    )


def counts(kind: type, **keywords: Any) -> Any:
    """A box with integer outputs alone, and a row that it cannot take."""
    box = kind(lambda state: grumble({2.0})(state)[..., 0].astype(int), outputs=(COUNT,), **keywords)
    return box(rows_of(1, 2, 3))


X = rows_of(1, 2, 3, 4)
ROW_ERRORS = [
    ErrorCase(
        "row-raises",
        lambda: grumbling(EachBox, {2.0, 4.0}),
        RowFailedError,
        [
            "EachBox: row 1 failed",
            "cannot take 2",
            "Row 1 was given state=[2, 1].",
            "='keep'",
        ],
    ),
    ErrorCase(
        "block-raises",
        lambda: grumbling(RowsBox, {2.0}),
        RowFailedError,
        ["RowsBox: a block of 4 rows failed", "ValueError: cannot take 2"],
    ),
    *(
        ErrorCase(
            f"{kind.__name__}-answers-nan",
            lambda kind=kind: answering(kind, [1, NAN, 3, INF]),
            RowFailedError,
            ["2 of 4 rows", "the first of them row 1", "not finite"],
        )
        for kind in (EachBox, RowsBox)
    ),
    *(
        ErrorCase(
            f"{kind.__name__}-overflows-float32",
            lambda kind=kind: answering(kind, [1, 1, 1e300]),
            RowFailedError,
            ["row 2 failed", "not finite"],
        )
        for kind in (EachBox, RowsBox)
    ),
    *(
        ErrorCase(
            f"{kind.__name__}-integers-cannot-be-kept",
            lambda kind=kind: counts(kind, failures="keep"),
            RowFailedError,
            ["row 1 failed", "integers cannot be marked NaN", "float dtype"],
        )
        for kind in (EachBox, RowsBox)
    ),
    ErrorCase(
        "input-nan",
        lambda: EachBox(grumble(set()))(rows_of(1, NAN, 2, INF)),
        NonFiniteInputError,
        ["EachBox, input 'state'", "row 1 (2 of 4 rows)", "failures='keep'"],
    ),
    ErrorCase(
        "second-input-infinite",
        lambda: RowsBox(lambda a, b: a, PAIR, PAIR[:1])(torch.zeros(2, 2, 3), torch.tensor([0, -INF])),
        NonFiniteInputError,
        ["input 'number'", "row 1 (1 of 2 rows)"],
    ),
    ErrorCase(
        "input-nan-of-integers",
        lambda: RowsBox(lambda s: s[:, 0].astype(int), outputs=(COUNT,), failures="keep")(rows_of(1, NAN)),
        NonFiniteInputError,
        ["integers cannot be marked NaN"],
    ),
]


@error_table(ROW_ERRORS)
def test_a_failed_row_is_raised(case):
    case.check()


def test_the_boxes_own_error_is_the_cause_and_shows_where_it_was():
    with pytest.raises(RowFailedError) as caught:
        grumbling(EachBox, {3.0})
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError) and cause.__traceback__ is not None


@KINDS
def test_nothing_runs_where_an_input_is_not_finite(kind, arrays):
    box = kind(grumble(set()), arrays=arrays)
    with pytest.raises(NonFiniteInputError):
        box(rows_of(1, NAN))
    assert box.calls == [] and box.ledger == Ledger(calls=1, rows_asked=2)


@pytest.mark.parametrize("kind, run, failed", [(EachBox, 2, 1), (RowsBox, 4, 4)])
def test_rows_that_were_not_run_are_not_counted_as_failed(kind, run, failed):
    box = kind(grumble({2.0}))
    with pytest.raises(RowFailedError):
        box(X)
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (run, failed)


# Failed rows under "keep"


@KINDS
@pytest.mark.parametrize(
    "bad", [set(), {1.0}, {8.0}, {4.0, 5.0}, {1.0, 3.0, 8.0}, set(map(float, range(1, 9)))]
)
def test_kept_rows_are_nan_and_the_others_as_in_a_clean_call(kind, arrays, bad):
    x = torch.stack([torch.arange(1.0, 9.0), torch.linspace(0, 1, 8)], 1)
    box = kind(grumble(bad), arrays=arrays, failures="keep")
    failed = torch.tensor([float(first) in bad for first in x[:, 0]])
    y = box(x.reshape(2, 4, 2)).reshape(8, 2)
    assert torch.equal(y[~failed], kind(grumble(set()), arrays=arrays)(x)[~failed])
    assert y[failed].isnan().all()
    assert (box.ledger.rows_failed, box.ledger.rows_skipped) == (len(bad), 0)


@KINDS
def test_a_row_fails_whole_and_integers_beside_it_become_zero(kind, arrays):
    def answer(state: Any) -> Any:
        return state, state[..., 0] / state[..., 1], state[..., 0].astype(int)

    def as_torch(state: Any) -> Any:
        return state, state[..., 0] / state[..., 1], state[..., 0].long()

    outputs = (STATE, ArraySpec("ratio", ()), COUNT)
    box = kind(answer if arrays == "numpy" else as_torch, outputs=outputs, arrays=arrays, failures="keep")
    with np.errstate(divide="ignore"):
        state, ratio, count = box(torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 2.0]]))
    assert state.isnan().any(1).tolist() == [False, True, False] and state[1].isnan().all()
    torch.testing.assert_close(ratio, torch.tensor([0.5, NAN, 2.5]), equal_nan=True)
    assert count.tolist() == [1, 0, 5]


@KINDS
@pytest.mark.parametrize("leading", [(4,), (2, 2), (4, 1)])
def test_rows_with_a_non_finite_input_are_skipped(kind, arrays, leading):
    x = rows_of(1, NAN, 2, -INF).reshape(*leading, 2)
    box = kind(grumble(set()), arrays=arrays, failures="keep")
    alive = np.isfinite(x).all(-1, keepdims=True)
    np.testing.assert_array_equal(box(x), np.where(alive, 3 * x, NAN))
    seen = np.concatenate([np.atleast_2d(np.asarray(given)) for (given,) in box.calls])
    np.testing.assert_array_equal(seen, rows_of(1, 2))
    ledger = box.ledger
    assert (ledger.rows_asked, ledger.rows_run, ledger.rows_skipped, ledger.rows_failed) == (4, 2, 2, 0)


@KINDS
def test_skipped_and_failed_rows_keep_their_places(kind, arrays):
    box = kind(grumble({2.0}), arrays=arrays, failures="keep")
    y = box(rows_of(NAN, 1, 2, INF, 4))
    np.testing.assert_array_equal(y[:, 0], [NAN, 3, NAN, NAN, 12])
    assert (box.ledger.rows_skipped, box.ledger.rows_failed) == (2, 1)


@KINDS
def test_a_rollout_goes_on_around_a_dead_row(kind, arrays):
    box = kind(grumble({9.0}), arrays=arrays, failures="keep")
    state = torch.tensor([[3.0, 3.0], [2.0, 2.0]])
    for _ in range(3):
        state = box(state)
    assert state[0].isnan().all() and state[1].tolist() == [54, 54]
    assert (box.ledger.rows_failed, box.ledger.rows_skipped) == (1, 1)


@KINDS
def test_a_call_of_dead_rows_runs_nothing(kind, arrays):
    box = kind(grumble(set()), arrays=arrays, failures="keep")
    assert np.isnan(box(rows_of(NAN, NAN))).all()
    assert box.calls == [] and box.ledger.rows_skipped == 2


@pytest.mark.parametrize("kind", [EachBox, RowsBox])
@pytest.mark.parametrize("dtype, kept", [("f4", [1, NAN]), ("f8", [1, 1e300])])
def test_a_value_too_large_for_the_callers_precision_is_a_failed_row(kind, dtype, kept):
    box = kind(lambda state: np.where(state == 2, 1e300, 1.0), failures="keep")
    y = box(np.array([[1, 1], [2, 2]], dtype))
    np.testing.assert_array_equal(y[:, 0], np.array(kept, dtype))
    assert box.ledger.rows_failed == np.isnan(kept).sum()


def test_marking_a_row_does_not_reach_into_the_boxs_own_memory():
    table = torch.arange(6.0).reshape(3, 2)
    shared = torch.ones(1, 2)

    def look_up(state: Any) -> Any:
        return table, shared.expand(3, 2), torch.where(state[:, 0] == 2, NAN, 0.0)

    outputs = (STATE, ArraySpec("shared", (2,)), ArraySpec("flaw", ()))
    box = RowsBox(look_up, outputs=outputs, arrays="torch", failures="keep")
    found, expanded, _ = box(torch.tensor(rows_of(1, 2, 3), dtype=torch.float32))
    assert found.isnan().any(1).tolist() == expanded.isnan().any(1).tolist() == [False, True, False]
    assert torch.equal(table, torch.arange(6.0).reshape(3, 2)) and torch.equal(shared, torch.ones(1, 2))


# What is never kept


@pytest.mark.parametrize("policy", ["raise", "keep"])
@pytest.mark.parametrize("error", [BudgetError, BlackBoxError, OutputError, KeyboardInterrupt])
@KINDS
def test_our_own_errors_and_interrupts_pass_through(kind, arrays, error, policy):
    box = kind(grumble({2.0}, error), arrays=arrays, failures=policy)
    with pytest.raises(error, match="cannot take 2") as caught:
        box(X)
    assert type(caught.value) is error
    assert box.ledger.rows_failed == 0 and box.ledger.seconds > 0
