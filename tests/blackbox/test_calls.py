"""The hook for calls of black boxes, and what a bare call refuses: a gradient that it would lose."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from blackbox import ArraySpec, BlackBoxFunction, Budgeted, Retrying
from blackbox.calls import intercepted
from blackbox.errors import NotDifferentiableError, ShapeError
from tests.blackbox.boxes import STATE, Doubling, ErrorCase, error_table


class Cooling(BlackBoxFunction):
    """A box with an input along which no derivative is wanted."""

    inputs = (ArraySpec("state", (2,)), ArraySpec("rate", (), differentiable=False))
    outputs = (STATE,)

    def evaluate_rows(self, state: Any, rate: Any) -> Any:
        return state * rate[:, None]


def learned() -> torch.Tensor:
    return torch.ones(3, 2, requires_grad=True)


def test_a_handler_answers_in_the_place_of_every_box():
    box, other = Doubling(), Cooling()
    seen: list[tuple[BlackBoxFunction, tuple[Any, ...]]] = []

    def handler(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        seen.append((box, arrays))
        return "instead"

    state, rate = np.ones((3, 2)), np.ones(3)
    with intercepted(handler):
        assert box(state) == "instead" and other(state, rate) == "instead"
    assert [asked for asked, _ in seen] == [box, other]
    assert seen[1][1][0] is state and seen[1][1][1] is rate
    assert box.ledger.calls == other.ledger.calls == 0
    assert (box(state) == 2).all() and len(seen) == 2


def test_the_plain_call_is_seen_once_whatever_calls_a_box_makes_itself():
    seen = []

    class Twice(BlackBoxFunction):
        inputs = outputs = (STATE,)
        inner = Doubling()

        def evaluate_rows(self, state: Any) -> Any:
            return self.inner(self.inner(state))

    def handler(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        seen.append(box)
        return box.call(*arrays)

    stack = Budgeted(Retrying(Twice()), rows=3)
    with intercepted(handler):
        assert (stack(np.ones((3, 2))) == 4).all()
        assert seen == [stack]
        with pytest.raises(ShapeError):
            stack(np.ones((3, 3)))
        assert seen == [stack, stack]  # the hook is as it was, also after an error
        Doubling()(np.ones((1, 2)))
        assert len(seen) == 3


def test_a_block_inside_another_takes_its_place_until_it_ends():
    box, state = Doubling(), np.ones((1, 2))
    with intercepted(lambda box, arrays: "outer"):
        with pytest.raises(ZeroDivisionError), intercepted(lambda box, arrays: "inner"):
            assert box(state) == "inner"
            raise ZeroDivisionError
        assert box(state) == "outer"
        with intercepted(None):
            assert (box(state) == 2).all()


def test_the_handlers_of_two_threads_do_not_meet():
    box, state, together = Doubling(), np.ones((1, 2)), threading.Barrier(3, timeout=60)
    answers: dict[str, list[Any]] = {"one": [], "two": []}

    def work(name: str) -> None:
        with intercepted(lambda box, arrays: name):
            for _ in range(20):
                together.wait()
                answers[name].append(box(state))

    threads = [threading.Thread(target=work, args=(name,)) for name in answers]
    for thread in threads:
        thread.start()
    for _ in range(20):
        together.wait()
        assert (box(state) == 2).all()  # this thread has no handler
    for thread in threads:
        thread.join()
    assert answers == {"one": ["one"] * 20, "two": ["two"] * 20}


ERRORS = [
    ErrorCase(
        "requires-grad",
        lambda: Doubling()(learned()),
        NotDifferentiableError,
        [
            "Doubling, input 'state'",
            "zo.LossGradient",
            "zo.TangentGradient",
            "zo.differentiable",
            ".detach()",
        ],
    ),
]


@error_table(ERRORS)
def test_a_call_that_would_lose_a_gradient_is_refused(case):
    case.check()


def test_training_through_a_bare_box_is_refused_before_anything_is_run():
    network, box = torch.nn.Linear(2, 2), Doubling()
    with pytest.raises(NotDifferentiableError):
        ((box(network(torch.ones(4, 2))) - network(torch.ones(4, 2))) ** 2).mean().backward()
    assert box.ledger.rows_asked == 0 and network.weight.grad is None


def test_values_alone_pass():
    box = Doubling()
    assert torch.equal(box(learned().detach()), torch.full((3, 2), 2.0))
    with torch.no_grad():
        assert torch.equal(box(learned()), torch.full((3, 2), 2.0))
    with torch.inference_mode():
        assert torch.equal(box(learned()), torch.full((3, 2), 2.0))
    with intercepted(lambda box, arrays: box.call(*arrays)):  # who sets a handler sees to the gradient
        assert torch.equal(box(learned()), torch.full((3, 2), 2.0))


def test_an_input_along_which_no_derivative_is_wanted_may_require_one():
    rate = torch.full((3,), 0.5, requires_grad=True)
    assert torch.equal(Cooling()(torch.ones(3, 2), rate), torch.full((3, 2), 0.5))
    with pytest.raises(NotDifferentiableError, match="'state'"):
        Cooling()(learned(), rate)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, of its forward mode
def test_a_gradient_in_forward_mode_is_refused_too():
    with forward_ad.dual_level(), pytest.raises(NotDifferentiableError):
        Doubling()(forward_ad.make_dual(torch.ones(3, 2), torch.ones(3, 2)))
    with pytest.raises(NotDifferentiableError):
        torch.func.grad(lambda state: Doubling()(state).sum())(torch.ones(3, 2))
