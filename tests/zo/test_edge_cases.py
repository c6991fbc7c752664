"""Short uses at the edge: tied and empty weights, a loss of zero, a row that is infinite, views of inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.zo.row_boxes import weights

Batch = tuple[Tensor, Tensor]
Objective = Callable[[nn.Module, Batch], Tensor]


class Tied(nn.Module):
    """One weight in two layers, as in an autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class WithEmpty(nn.Module):
    """A parameter without a number, as a layer of no channels has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.none = nn.Linear(3, 3), nn.Parameter(torch.empty(3, 0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(self.linear(x)), x @ self.none], dim=1)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def squares(network: nn.Module, batch: Batch) -> Tensor:
    return network(batch[0]).square().mean(dim=1)


def beside_targets(network: nn.Module, batch: Batch) -> Tensor:
    """Exactly zero at the weights that made the targets, and not even there."""
    x, targets = batch
    return (network(x) - targets).sum(dim=1)


def infinite_in_row_two(network: nn.Module, batch: Batch) -> Tensor:
    """The row whose targets are out of range."""
    return squares(network, batch) + torch.where(batch[1][:, 0] > 9, torch.inf, 0.0)


def of_the_others(network: nn.Module, batch: Batch) -> Tensor:
    return squares(network, batch)[batch[1][:, 0] <= 9]


class View(BlackBoxFunction):
    """The numbers of a row in another order: a view of the input, in NumPy with a negative stride."""

    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (2,)),)

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        return x[:, :0:-1]


class TorchView(View):
    arrays = "torch"

    def evaluate_rows(self, x: Tensor) -> Tensor:
        return x[:, 1:]


def through(box: BlackBoxFunction | zo.box_gradient.DifferentiableBox) -> Objective:
    return lambda network, batch: (box(network(batch[0])) - 0.3).square().mean(dim=1)


def of_the_last_two(network: nn.Module, batch: Batch) -> Tensor:
    return (network(batch[0])[:, 1:] - 0.3).square().mean(dim=1)


# A network, its objective, and what autograd takes in its place.
CASES: dict[str, tuple[Callable[[], nn.Module], Objective, Objective]] = {
    "tied weights": (Tied, squares, squares),
    "empty parameter": (WithEmpty, squares, squares),
    "loss of zero": (plain, beside_targets, beside_targets),
    "infinite row": (plain, infinite_in_row_two, of_the_others),
    "view of the input": (plain, through(View()), of_the_last_two),
    "view in torch": (plain, through(TorchView()), of_the_last_two),
}
EVALUATORS = {"loop": "loop", "stacked": zo.evaluators.Stacked(), "auto": "auto"}


def made(make: Callable[[], nn.Module]) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    network, x = make().double(), weights(5, 3)
    return network, (x, network(x).detach())


def grads(network: nn.Module) -> list[Tensor]:
    """One for each parameter; None stands for one without a number."""
    parts = [weight.new_empty(0) if weight.grad is None else weight.grad for weight in network.parameters()]
    assert [part.numel() for part in parts] == [weight.numel() for weight in network.parameters()]
    return parts


def error_of(network: nn.Module, step: Callable[[], object], truth: Tensor) -> float:
    """The relative error of the gradient that a step leaves."""
    exact = torch.autograd.grad(truth, list(network.parameters()))
    network.zero_grad()
    step()
    pairs = list(zip(grads(network), exact, strict=True))
    size = sum(float(true.square().sum()) for _, true in pairs)
    return (
        sum(float((part.flatten() - true.flatten()).square().sum()) for part, true in pairs) / size
    ) ** 0.5


@pytest.mark.quick_cases(9)
@pytest.mark.filterwarnings("ignore:.*:zo.errors.LostRowsWarning")  # of the infinite row
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", CASES)
def test_an_edge_case_has_autograd_s_gradient(name, evaluator, central):
    network, batch = made(CASES[name][0])
    _, objective, reference = CASES[name]
    if name == "infinite row":
        batch[1][2] = 10.0
    if name == "loss of zero":
        assert not objective(network, batch).any()
    estimator = zo.CGE(1e-5 if central else 1e-6, central=central)
    gradient = zo.LossGradient(network, objective, estimator, evaluator=EVALUATORS[evaluator])
    error = error_of(network, lambda: gradient.backward(batch), reference(network, batch).mean())
    assert error < 1e-5  # mu / 2 times a curvature of order one, and eps / mu times a loss of order one
    assert gradient.counts.dropped == 0


@pytest.mark.parametrize("box", [View, TorchView])
@pytest.mark.parametrize("way", ["differentiable", "tangent"])
def test_a_view_of_the_input_is_an_output_like_others(box, way):
    network, batch = made(plain)

    def step() -> None:
        if way == "differentiable":
            through(zo.differentiable(box(), zo.CGE(1e-6)))(network, batch).mean().backward()
            return
        solver, tangent = (
            box(),
            zo.tangents.ModelTangent(lambda x: x[:, 1:] if box is TorchView else x[:, 1:].flip(1)),
        )
        zo.TangentGradient(network, through(solver), boxes=[solver], tangent=tangent).backward(batch)

    assert error_of(network, step, of_the_last_two(network, batch).mean()) < 1e-4


@pytest.mark.parametrize("central", [False, True])
def test_a_row_that_only_queries_make_infinite_costs_its_coordinates_alone(central):
    """A number of a row passes its limit over steps of one sign; the others' mean is over all rows."""
    network, batch = made(plain)
    limit = float(network(batch[0]).detach()[:, 0].max()) + 1e-9

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        y = network(batch[0])
        return torch.where(y[:, 0] > limit, torch.inf, y.square().mean(dim=1))

    truth = torch.autograd.grad(squares(network, batch).mean(), list(network.parameters()))
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-6, central=central), max_dropped=0.5)
    gradient.backward(batch)
    exact, estimated = (torch.cat([part.flatten() for part in parts]) for parts in (truth, grads(network)))
    kept = estimated != 0
    assert 0 < gradient.counts.dropped < len(estimated)
    assert int((~kept).sum()) == (0 if central else gradient.counts.dropped)  # of two, one side is left
    assert torch.allclose(estimated[kept], exact[kept], atol=1e-5)
