"""`difference` against `loop` in float64, row by row: layers, whole networks, both modes, at the same mu."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zo
from tasks.applications.wake_flow import networks as wake
from tests.oracles.layers import LAYERS, NETWORKS, Case
from tests.oracles.test_stacked import coordinates
from zo.estimators import Coordinates
from zo.evaluators import Difference, Loop, Step

MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def spread(output, target):
    """Asymmetric in the output; without a target."""
    y = output.flatten(1)
    return (y - torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)).square().mean(dim=1)


def classified(output, target):
    return F.cross_entropy(output, target, reduction="none")


ALONE = zo.OutputLoss(spread, inputs=lambda batch: batch, targets=lambda batch: None)
LABELLED = zo.OutputLoss(classified)


class OptionA(nn.Module):
    """A residual block whose shortcut is a strided slice, padded with channels of zeros."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.more, self.stride = (out - channels) // 2, stride

    def forward(self, x):
        y = F.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        y += F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(y, inplace=True)


def option_a() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(OptionA(4, 4, 1), OptionA(4, 8, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


class Denoiser(nn.Module):
    """DnCNN: what the layers give is taken off the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
            nn.Conv2d(5, 2, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return x - self.layers(x)


class Attending(nn.Module):
    """Attention whose weights are looked at, with a mask; positions as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(4, 6))
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        x = x + self.position
        mask = torch.ones(4, 4, dtype=torch.bool, device=x.device).triu(1)
        mixed, weights = self.attention(x, x, x, attn_mask=mask, need_weights=True)
        return self.norm(x + mixed).mean(1) * weights.amax(-1)[:, :1]


class Viewed(nn.Module):
    """Reads a view of a convolution's result after a function that could have written over it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.layer, self.head = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3), nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(self.before(x))
        view = y.flatten(2)
        z = F.relu(y)
        return self.head(torch.add(z, y).flatten(2).mean(2) + torch.add(z, z).amax((2, 3)) * view.sum(2))


def images(rows, channels, size):
    return lambda: (torch.randn(rows, channels, size, size), torch.arange(rows) % 3)


def unlabelled(*shape):
    return lambda: torch.randn(*shape)


MORE = [
    Case("resnet, option A", option_a, images(5, 3, 6)),
    Case("denoiser", Denoiser, unlabelled(3, 2, 6, 5)),
    Case("viewed", Viewed, images(4, 2, 8)),
    Case("attending", Attending, unlabelled(3, 4, 6)),
    Case(
        "wake",
        lambda: wake.Corrector(wake.plain((4,)), wake.Scales(1.3, 200.0, 0.2)),
        lambda: (torch.randn(3, 2, 6, 8), 100 + 300 * torch.rand(3)),
    ),
    Case(
        "wake, residual",
        lambda: wake.Corrector(wake.residual(4, 2), wake.Scales(1.3, 200.0, 0.2)),
        lambda: (torch.randn(3, 2, 6, 8), 100 + 300 * torch.rand(3)),
    ),
]


def step_of(case: Case, dtype: torch.dtype, training: bool) -> Step:
    network, batch = case.make(dtype, training=training)
    labelled = isinstance(batch, tuple) and not batch[1].is_floating_point()
    rows = len(batch[0]) if isinstance(batch, tuple) else len(batch)
    return Step(network, zo.estimators.Parameters(network), LABELLED if labelled else ALONE, batch, rows)


@torch.no_grad()
def base_of(step: Step) -> torch.Tensor:
    still = Coordinates(torch.tensor([0]), torch.zeros(1, dtype=step.parameters.dtype))
    return Loop().changes(step, still, torch.zeros(step.rows, dtype=still.steps.dtype))[0]


@pytest.fixture
def way(request, limits):
    """Changes to the end, as small activations are sent; or new values, as large ones are."""
    if request.param == "values":
        limits(activations_followed=0)
    return request.param


@pytest.mark.quick_cases(24)
@pytest.mark.parametrize(
    ("way", "training"),
    [
        *(("changes", True), ("changes", False), ("values", True)),
        pytest.param("values", False, marks=pytest.mark.slow),
    ],
    indirect=["way"],
)
@pytest.mark.parametrize("case", [*LAYERS, *NETWORKS, *MORE], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_network_in_float64(case, way, training):
    step = step_of(case, torch.float64, training)
    queries = coordinates(step.parameters, most=7)
    torch.manual_seed(3)  # of dropout
    base = base_of(step)
    buffers = {name: tensor.clone() for name, tensor in step.network.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        changes = Difference().begin(step, base)(queries)
        assert torch.equal(torch.get_rng_state(), random)
        truth = Loop().changes(step, queries, base)
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in step.network.state_dict().items())
    # Of the truth: some hundred additions on the way to a loss, each wrong by half a unit of its own size.
    bound = 200 * torch.finfo(torch.float64).eps * (1 + base.abs() + (truth + base).abs())
    assert ((changes - truth).abs() <= bound).all()


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["training", "evaluation"]
)
@pytest.mark.parametrize("case", [*NETWORKS, *MORE], ids=str)
def test_in_float32_the_error_does_not_grow_as_mu_shrinks(case, training):
    narrow = step_of(case, torch.float32, training)
    queries = coordinates(narrow.parameters, most=5)
    wide = copy.deepcopy(narrow.network).double()
    batch = narrow.batch
    cast = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    batch = tuple(map(cast, batch)) if isinstance(batch, tuple) else cast(batch)
    exact = Step(wide, zo.estimators.Parameters(wide), narrow.objective, batch, narrow.rows)
    for mu in (1e-2, 1e-5):
        steps = mu * queries.steps.sign()
        with torch.no_grad():
            torch.manual_seed(3)
            base = base_of(narrow)
            changes = Difference().changes(narrow, Coordinates(queries.indices, steps), base).double()
            torch.manual_seed(3)
            # In float64 a difference of losses is good to 1e-15 / 1e-5, and it does not need `difference`.
            truth = Loop().changes(exact, Coordinates(queries.indices, steps.double()), base_of(exact))
        # A few hundred roundings of changes no larger than the largest of all; mu is not in the bound
        # but through the changes.
        bound = 500 * torch.finfo(torch.float32).eps * truth.abs().max() + 1e-14
        assert ((changes - truth).abs() <= bound).all()


@pytest.mark.quick_cases(2)
@MODES
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_layers_fall_back_by_name_and_give_what_loop_gives(cell, training):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = cell(3, 2, batch_first=True), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    grads = []
    for evaluator in ("loop", "difference"):
        torch.manual_seed(0)
        network = Recurrent().double().train(training)
        gradient = zo.LossGradient(network, ALONE, zo.CGE(1e-4), evaluator=evaluator)
        batch = torch.randn(4, 5, 3).double()
        if evaluator == "loop":
            gradient.backward(batch)
        else:
            with pytest.warns(zo.errors.EvaluatorWarning) as caught:
                gradient.backward(batch)
            assert sum(f"cell ({cell.__name__})" in str(warning.message) for warning in caught) == 1
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(*grads)
