"""What a forward keeps of a weight by the weight's version, and what it writes without a change at first."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction


def by_autograd(network: nn.Module, objective, batch: Tensor) -> list[Tensor]:
    """The gradient of the mean loss in float64, of a copy that starts in the same state."""
    network = copy.deepcopy(network).double()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(objective(network, batch.double()).mean(), weights))


def error(network: nn.Module, truth: list[Tensor]) -> float:
    grads = [weight.grad for weight in network.parameters() if weight.grad is not None]
    off = [(grad.double() - true).norm() for grad, true in zip(grads, truth, strict=True)]
    return float(torch.stack(off).norm() / torch.stack([true.norm() for true in truth]).norm())


class Rotated(nn.Module):
    """A rotation by a matrix exponential, which is kept while its weight stays as it is."""

    def __init__(self, keeps: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o = nn.Parameter(0.3 * torch.randn(4, 4)), nn.Linear(4, 1)
        self.keeps, self.kept, self.version, self.all = keeps, None, None, {}

    def rotation(self) -> Tensor:
        version = self.a._version
        if self.keeps == "the last one":
            if self.version != version:
                self.kept, self.version = torch.linalg.matrix_exp(self.a - self.a.T), version
            assert self.kept is not None
            return self.kept
        if version not in self.all:
            self.all[version] = torch.linalg.matrix_exp(self.a - self.a.T)
        return self.all[version]

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(x @ self.rotation()))


def mean_square(network: nn.Module, batch: Tensor) -> Tensor:
    return (network(batch) - batch[:, :1]).square().mean(dim=1)


def penalised(network: nn.Module, batch: Tensor) -> Tensor:
    """What is kept is read outside of the layer too."""
    return mean_square(network, batch) + (network.rotation() - 1).square().mean()


def output_loss() -> zo.OutputLoss:
    return zo.OutputLoss(
        lambda output, target: (output - target).square().mean(dim=1),
        inputs=lambda batch: batch,
        targets=lambda batch: batch[:, :1],
    )


CGE, RGE = zo.CGE(1e-4, central=True), zo.RGE(1e-4, q=300, central=True)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("keeps", ["the last one", "all"])
@pytest.mark.parametrize(
    ("objective", "evaluator", "estimator"),
    [
        (mean_square, "loop", CGE),
        (mean_square, "stacked", CGE),
        (mean_square, "stacked", RGE),
        (penalised, "loop", CGE),
        (penalised, "stacked", CGE),
        (output_loss(), "difference", CGE),
    ],
)
@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")
def test_micro_batches_and_steps_where_a_forward_keeps_by_version(keeps, objective, evaluator, estimator):
    """In each step a validation and two batches at the same weights."""
    network, batches = Rotated(keeps), torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator)
    for _ in range(3):
        network(batches[0])
        for batch in batches[1:]:
            fresh = Rotated(keeps)
            fresh.load_state_dict(network.state_dict())
            truth = by_autograd(fresh, objective, batch)
            optimizer.zero_grad()
            gradient.backward(batch)
            # 300 random directions of 21 weights leave an error of (21 / 300) ** .5 = .26
            assert error(network, truth) < (0.5 if estimator is RGE else 5e-3)
        optimizer.step()


class Shifted(BlackBoxFunction):
    """Its derivative is the identity, to the last bit."""

    inputs = outputs = (ArraySpec("x", shape=(4,), dtype="float32"),)

    def evaluate_rows(self, x):
        return x + 1


def test_tangents_where_a_forward_keeps_by_version():
    """What is kept without a graph, as the box is asked, is not taken for the replay, which has one."""
    network, box = Rotated("the last one"), Shifted()

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        return (box(batch @ network.rotation()) - batch).square().mean(dim=1)

    def smooth(network: nn.Module, batch: Tensor) -> Tensor:
        return (batch @ network.rotation() + 1 - batch).square().mean(dim=1)

    gradient = zo.TangentGradient(
        network,
        objective,
        boxes=[box],
        tangent=zo.tangents.IdentityTangent(),
        parameters="a",
    )
    batch, optimizer = torch.randn(32, 4), torch.optim.SGD([network.a], lr=0.1)
    for _ in range(2):
        fresh = Rotated("the last one")
        fresh.load_state_dict(network.state_dict())
        (truth,) = torch.autograd.grad(smooth(fresh, batch).mean(), fresh.a)
        optimizer.zero_grad()
        gradient.backward(batch)
        assert error(network, [truth]) < 1e-4
        optimizer.step()


@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
def test_a_graph_made_before_the_step_is_of_use_after_it(evaluator):
    """Queries leave weights as they were, and their versions, which autograd looks at."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    batch = torch.randn(8, 4)
    other = network(batch.flip(1)).square().mean()
    zo.LossGradient(network, output_loss(), zo.CGE(1e-3), evaluator=evaluator).backward(batch)
    for weight in network.parameters():
        weight.grad = None
    other.backward()
    truth = by_autograd(network, lambda net, x: net(x.flip(1)).square(), batch)
    assert error(network, truth) < 1e-5


class Averaged(nn.Module):
    """A student, and a teacher that follows it in the forward and starts as a copy."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.s = nn.Linear(4, 3)
        self.t = copy.deepcopy(self.s).requires_grad_(False)
        self.how, self.kept = how, []
        if how == "a large attribute":  # of more numbers than are put back in any case
            self.kept = [torch.zeros(30_000), torch.zeros(3)]

    def follow(self) -> None:
        for t, s in zip(self.t.parameters(), self.s.parameters(), strict=True):
            if self.how == "lerp_":
                t.lerp_(s, 0.01)
            elif self.how == "lerp_ of .data":
                t.data.lerp_(s.data, 0.01)
            elif self.how == "assigned .data":
                t.data = t.data + 0.01 * (s.data - t.data)
        if self.how == "foreach":
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(self.t.parameters()), list(self.s.parameters()), 0.01
            )
        if self.how == "a large attribute":
            self.kept[0] = self.kept[0].to(self.s.bias)  # as the twin of float64 needs
            self.kept[0].data.add_((self.s.weight - self.t.weight).sum())

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.follow()
        kept = self.kept[0][:1] if self.kept else 0.0
        return self.s(x) - self.t(x.flip(1)) + kept


TEACHERS = ["lerp_", "lerp_ of .data", "assigned .data", "foreach", "a large attribute"]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("evaluator", ["loop", "auto"])
@pytest.mark.parametrize("how", TEACHERS)
@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")
def test_a_teacher_that_starts_as_a_copy(how, evaluator):
    """The forward writes to it, and at the first step no value changes."""
    batches = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(1))

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        return network(batch).square().mean(dim=1)

    network = Averaged(how)
    optimizer = torch.optim.SGD(network.s.parameters(), lr=0.1)
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-4, central=True), evaluator=evaluator)
    twin = copy.deepcopy(network)  # what a plain forward leaves
    for batch in batches:
        twin.load_state_dict(network.state_dict())
        truth = finite_differences(network, objective, batch)
        optimizer.zero_grad()
        gradient.backward(batch)
        assert error(network.s, truth) < 5e-3
        twin(batch)
        for weight, other in zip(network.t.parameters(), twin.t.parameters(), strict=True):
            assert torch.equal(weight, other)
        optimizer.step()


def finite_differences(network: nn.Module, objective, batch: Tensor) -> list[Tensor]:
    """Central ones in float64, each from a copy: the teacher follows the moved student, as in a query."""
    start = copy.deepcopy(network).double()
    grads = []
    for name, weight in start.s.named_parameters():
        slopes = torch.zeros_like(weight)
        for place in range(weight.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                moved = copy.deepcopy(start)
                with torch.no_grad():
                    moved.s.get_parameter(name).view(-1)[place] += step
                    ends.append(objective(moved, batch.double()).mean())
            slopes.view(-1)[place] = (ends[0] - ends[1]) / 2e-5
        grads.append(slopes)
    return grads


class WritesInQueries(nn.Module):
    """Writes to a frozen weight once the other one has been moved: queries see other values than the base."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if (self.own != 1).any():
            with torch.no_grad():
                self.frozen.mul_(1.5)
        return x * self.own * self.frozen


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_weights_that_only_queries_write_are_refused(evaluator):
    network = WritesInQueries()
    gradient = zo.LossGradient(
        network, lambda n, b: n(b).square().mean(dim=1), zo.CGE(1e-3), evaluator=evaluator
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.errors.EvaluatorWarning)
        with pytest.raises(zo.errors.ObjectiveError, match="wrote to frozen in a query"):
            gradient.backward(torch.randn(5, 3))
    assert torch.equal(network.frozen, torch.ones(3))
