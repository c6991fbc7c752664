"""Inputs that are the same in all rows though weights move them: values cannot show their derivative."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch

MIX = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.4]])
AIM = torch.tensor([1.5, -1.0])


def answer(design, condition):
    return torch.tanh(design @ MIX) + condition * design[:, :2]


BOX = (ArraySpec("design", (3,)), ArraySpec("condition", (2,), differentiable=False)), (ArraySpec("y", (2,)),)


class Design(nn.Module):
    """One design for all rows."""

    def __init__(self, numbers: int = 3) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(numbers))

    def forward(self, rows):
        return self.numbers.expand(len(rows), -1)


def objective_of(box):
    return lambda network, rows: (box(network(rows), rows) - AIM).square().mean(dim=1)


def batch(step: int):
    return torch.rand(8, 2, generator=torch.Generator().manual_seed(step))


def test_one_design_for_all_rows_gets_its_gradient_by_a_dither():
    box, network = FromTorch(answer, *BOX), Design()
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient.backward(batch(0))
    assert not caught
    assert network.numbers.grad is None or not network.numbers.grad.any()  # nothing is known of it
    for step in range(1, 13):
        optimizer.zero_grad()
        gradient.backward(batch(step))
        optimizer.step()
    (true,) = torch.autograd.grad(objective_of(answer)(network, batch(13)).mean(), network.numbers)
    optimizer.zero_grad()
    gradient.backward(batch(13))
    assert torch.cosine_similarity(network.numbers.grad, true, dim=0) > 0.9


def test_where_no_dither_is_allowed_it_is_said_that_nothing_shows_the_derivative():
    box, network = FromTorch(answer, *BOX), Design()
    gradient = zo.TangentGradient(
        network, objective_of(box), boxes=[box], limits=zo.tangents.Limits(excite=0)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient.backward(batch(0))
        gradient.backward(batch(1))
    (warning,) = caught  # and none of a gradient that is zero: this says more of it
    assert "'design' of FromTorch" in str(warning.message) and "Leave excite out" in str(warning.message)


def test_one_number_among_others_is_enough():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.shared, self.layer = Design(1), nn.Linear(2, 2)

        def forward(self, rows):
            return torch.cat([self.layer(rows), self.shared(rows)], dim=1)

    # the conditions would determine the other two numbers
    box = FromTorch(lambda design: torch.tanh(design @ MIX), BOX[0][:1], BOX[1])
    gradient = zo.TangentGradient(
        Partly(), lambda network, rows: box(network(rows)).square().mean(dim=1), boxes=[box]
    )
    for step in range(3):
        gradient.backward(batch(step))
    dithered = gradient.excitation[0]["design"]
    assert (dithered > 0).tolist() == [False, False, True]


def behind_a_wall(state):
    return torch.sin(state) * 0.5


WALL = torch.ones(1, 40)
WALL[:, :4] = 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("function", "specs", "network", "objective"),
    [
        (answer, BOX, nn.Linear(2, 3), objective_of),
        # cells behind a wall, which the weights move: a field is looked at as a whole
        (
            behind_a_wall,
            ((ArraySpec("u", (1, 40)),), (ArraySpec("u", (1, 40)),)),
            nn.Conv1d(1, 1, 3, padding=1),
            lambda box: (
                lambda network, rows: box(network(rows[:, :1, None] * WALL)).square().flatten(1).mean(1)
            ),
        ),
        # the same in all rows, and no weight moves it
        (
            answer,
            BOX,
            nn.Linear(2, 2),
            lambda box: (
                lambda network, rows: box(
                    torch.cat([network(rows), torch.ones(len(rows), 1)], 1), rows
                ).square()[:, 0]
            ),
        ),
    ],
    ids=["a network", "a wall", "a constant"],
)
def test_nothing_is_said_where_inputs_differ_or_no_weight_moves_them(function, specs, network, objective):
    box = FromTorch(function, *specs)
    policy = zo.tangents.Limits(check_every=None)
    gradient = zo.TangentGradient(network, objective(box), boxes=[box], limits=policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(batch(0))
    assert len(box.asked) == 1  # and nothing was asked


def test_a_network_that_saturates_in_training_is_said_and_ends_nothing():
    class Saturating(Design):
        def forward(self, rows):
            return super().forward(rows).tanh()

    box, network = FromTorch(answer, *BOX), Saturating()
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient.backward(batch(0))
        for step in range(1, 4):
            with torch.no_grad():
                network.numbers.fill_(30.0)  # whose tanh is 1, to the bit, however it is moved
            network.zero_grad()
            gradient.backward(batch(step))
            assert network.numbers.grad is None or not network.numbers.grad.any()
    said = [str(warning.message) for warning in caught if "saturated" in str(warning.message)]
    assert len(said) == 1 and "Step 2:" in said[0]
    with torch.no_grad():
        network.numbers.fill_(0.1)
    network.zero_grad()
    gradient.backward(batch(4))
    assert network.numbers.grad is None or network.numbers.grad.isfinite().all()


def warned_of(objective, network, box, batches, **settings):
    """The words of each step's warnings."""
    gradient = zo.TangentGradient(network, objective, boxes=[box], seed=0, **settings)
    optimizer, words = torch.optim.SGD(network.parameters(), lr=0.05), []
    for rows in batches:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.zero_grad()
            gradient.backward(rows)
            optimizer.step()
        words.append([str(warning.message) for warning in caught])
    return words


def one_row(step: int):
    return batch(step)[:1]


def through(function):
    return lambda network, rows: (function(network(rows), rows) - AIM).square().mean(dim=1)


LEARNING = {
    "default": lambda: None,
    "mlp": lambda: zo.tangents.MLPTangent(16),
    "kernel": lambda: zo.tangents.KernelTangent(),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", LEARNING)
def test_with_batches_of_one_row_nothing_is_said_of_the_first_and_the_gradient_becomes_the_true_one(kind):
    """A model of values has seen one row then, which has no derivative."""

    def function(design):
        return torch.tanh(design @ MIX) + 0.3 * design[:, :2]

    def objective(box):
        return lambda network, rows: (box(network(rows)) - AIM).square().mean(dim=1)

    torch.manual_seed(0)
    box, network = FromTorch(function, BOX[0][:1], BOX[1]), nn.Linear(2, 3)
    words = warned_of(objective(box), network, box, map(one_row, range(60)), tangent=LEARNING[kind]())
    assert words[:3] == [[], [], []]
    found = torch.cat([weight.grad.flatten() for weight in network.parameters()])
    loss = objective(function)(network, one_row(59)).mean()
    true = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])
    assert torch.cosine_similarity(found, true, dim=0) > 0.9


def test_nor_where_all_rows_but_one_fail():
    def failing(design, condition):
        return torch.where(condition[:, :1] > batch(0)[:, :1].min(), torch.nan, answer(design, condition))

    box, network = FromTorch(failing, *BOX), nn.Linear(2, 3)
    (words,) = warned_of(through(box), network, box, [batch(0)])
    assert not [message for message in words if "exactly zero" in message]


def test_of_batches_of_one_row_in_which_nothing_changes_the_gradient_is_soon_there():
    box, network = FromTorch(answer, *BOX), Design()
    words = warned_of(through(box), network, box, [one_row(step) for step in range(20)])
    assert not any(words)
    (true,) = torch.autograd.grad(through(answer)(network, one_row(19)).mean(), network.numbers)
    assert torch.cosine_similarity(network.numbers.grad, true, dim=0) > 0.9


@pytest.mark.parametrize("rows", [1, 2])
def test_a_gradient_that_is_cut_is_said_with_batches_of_one_row_too(rows):
    def cut(network, data):
        return (box(network(data).detach(), data) - AIM).square().mean(dim=1)

    box, network = FromTorch(answer, *BOX), nn.Linear(2, 3)
    words = warned_of(cut, network, box, [batch(step)[:rows] for step in range(2)])
    told = [step for step, messages in enumerate(words) for message in messages if ".detach()" in message]
    assert told == [2 - rows]


def test_several_calls_of_one_row_are_several_rows():
    """A rollout of one row shows the box as many rows as it has calls: a zero gradient is said at once."""

    def cut(network, data):
        state = data
        for _ in range(3):
            state = box(network(state).detach(), state)
        return state.square().mean(dim=1)

    box, network = FromTorch(answer, *BOX), nn.Linear(2, 3)
    (words,) = warned_of(cut, network, box, [one_row(0)])
    assert len(words) == 1 and ".detach()" in words[0]


def test_a_check_by_one_row_says_of_no_output_that_nothing_moves_it():
    """One row has no spread, of which torch would warn."""
    box = FromTorch(
        lambda design: torch.cat([design.square(), torch.ones_like(design)], 1),
        (ArraySpec("design", (2,)),),
        (ArraySpec("y", (4,)),),
    )
    network = nn.Linear(2, 2)
    gradient = zo.TangentGradient(
        network, lambda network, rows: box(network(rows)).square().mean(dim=1), boxes=[box], seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(12):
            gradient.backward(batch(step)[:1])
    assert gradient.agreement is not None
    assert gradient._stand_ins.excited[0].unmoved == ()
