"""A gradient that is cut between weights and loss: what is missing is said, and nothing else."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch

ROWS = 16


def two(x: Tensor, size: float = 0.2) -> tuple[Tensor, Tensor]:
    return size * torch.sin(x), torch.sin(x)


def hardly(x: Tensor) -> tuple[Tensor, Tensor]:
    return two(x, 0.01)


def counted(x: Tensor) -> tuple[Tensor, Tensor]:
    return 0.01 * torch.sin(x), torch.floor(100 * x).long()


def flagged(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x), x > 0


def make_box(function, dtype: str = "float64") -> FromTorch:
    outputs = (ArraySpec("total", (1,)), ArraySpec("cells", (1,), dtype=dtype))
    return FromTorch(function, (ArraySpec("x", (1,)),), outputs)


def make_network(*beside: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), *beside, nn.Tanh(), nn.Linear(8, 1)).double()


def batch(step: int, rows: int = ROWS) -> Tensor:
    return torch.rand(rows, 1, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def trained(
    network, objective, box, steps: int = 12, rows: int = ROWS, **settings
) -> tuple[list[str], zo.TangentGradient]:
    """What is said in some steps, and the gradient."""
    gradient = zo.TangentGradient(network, lambda n, w: objective(n, w, box), boxes=[box], **settings)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(steps):
            optimizer.zero_grad()
            gradient.backward(batch(step, rows))
            optimizer.step()
    return [str(warning.message) for warning in said], gradient


def detached(network, w, box):
    a, b = box(network(w))
    return (b.detach() - w).square().mean(dim=1) + a.square().mean(dim=1)


def by_number(network, w, box):
    a, b = box(network(w))
    return (b.mean().item() - w).square().mean(dim=1) + a.square().mean(dim=1)


def by_numpy(network, w, box):
    a, b = box(network(w))
    return (torch.from_numpy(b.detach().numpy()) - w).square().mean(dim=1) + a.square().mean(dim=1)


def without_graph(network, w, box):
    with torch.no_grad():
        b = box(network(w))[1]
    return (b - w).square().mean(dim=1) + box(network(w))[0].square().mean(dim=1)


def cut_in_front(network, w, box):
    b = box(network(w).detach())[1]
    return (b - w).square().mean(dim=1) + box(network(w))[0].square().mean(dim=1)


def cut_behind_the_network(network, w, box):
    z = network(w)
    return box(z)[0].square().mean(dim=1) + (z.detach() - w).square().mean(dim=1)


CUTS = [detached, by_number, by_numpy, without_graph, cut_in_front, cut_behind_the_network]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rows", [3, ROWS])
@pytest.mark.parametrize("objective", CUTS)
def test_a_cut_gradient_is_said_in_the_first_step_with_the_part_that_it_has(objective, rows):
    """The measured change over the predicted one, against autograd with and without the cut."""
    network = make_network()
    said, gradient = trained(network, objective, make_box(two), rows=rows)
    (cut,) = [words for words in said if "cut off" in words]
    assert cut.startswith("Step 1:")
    assert not any("learn" in words for words in said)  # no remedy for tangents
    assert gradient.next_queries() == 0
    times = re.search(r"got (\S+) times that", cut)
    assert times

    network = make_network()
    through = objective(network, batch(0, rows), two).mean()
    weights = list(network.parameters())
    with_cut = torch.cat(
        [part.flatten() for part in torch.autograd.grad(through, weights, retain_graph=True)]
    )
    # the whole derivative, by differences of the loss along the gradient that is left
    theta, h = nn.utils.parameters_to_vector(weights).detach(), 1e-4
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            nn.utils.vector_to_parameters(theta + sign * h * with_cut / with_cut.norm(), weights)
            losses.append(objective(network, batch(0, rows), two).mean())
    expected = float((losses[0] - losses[1]) / (2 * h) / with_cut.norm())
    assert float(times[1]) == pytest.approx(expected, rel=0.2)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("objective", CUTS)
def test_where_hardly_anything_is_left_of_a_gradient_that_is_said(objective):
    said, _ = trained(make_network(), objective, make_box(hardly))
    (cut,) = [words for words in said if "cut off" in words]
    times = re.search(r"got (\S+) times that", cut)
    assert times and abs(float(times[1])) > 100


def test_a_loss_through_whole_numbers_names_the_output_in_the_first_step():
    def objective(network, w, box):
        total, cells = box(network(w))
        return (cells / 100 - w).square().mean(dim=1) + total.square().mean(dim=1)

    said, _ = trained(make_network(), objective, make_box(counted, "int64"))
    (named,) = [words for words in said if "which have none: what weights" in words]
    assert named.startswith("Step 1:") and "'cells' (int64)" in named
    assert any("cut off" in words for words in said)


def test_a_loss_of_whole_numbers_alone_is_said_once():
    def objective(network, w, box):
        return (box(network(w))[1] / 100 - w).square().mean(dim=1)

    said, _ = trained(make_network(), objective, make_box(counted, "int64"), 3)
    (named,) = said
    assert "'cells' (int64)" in named


def test_rows_that_all_have_one_whole_number_and_numbers_that_index_are_seen():
    table = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def objective(network, w, box):
        total, cells = box(network(w))
        return (total - table[cells]).square().mean(dim=1)

    same = make_box(lambda x: (torch.sin(x), torch.ones_like(x).long()), "int64")
    said, _ = trained(make_network(), objective, same, 1)
    assert any("'cells' (int64)" in words for words in said)


def watched_alone(network, w, box):
    total, cells = box(network(w))
    float(cells.double().mean())  # as for a log
    return (total - w).square().mean(dim=1)


def masked(network, w, box):
    total, inside = box(network(w))
    return torch.where(inside, total - w, 0.1 * (total - w)).square().mean(dim=1)


def plain(network, w, box):
    a, b = box(network(w))
    return (b - w).square().mean(dim=1) + a.square().mean(dim=1)


def in_turn(network, w, box):
    for _ in range(4):
        w = w + 0.3 * network(box(w)[1])
    return (w - 1).square().mean(dim=1)


def steep(network, w, box):
    return torch.exp(3 * box(network(w))[1]).mean(dim=1)


def near_its_minimum(network, w, box):
    return (box(network(w))[1] - 0.1 * torch.randn_like(w)).square().mean(dim=1) + 1.0


RIGHT = [
    (watched_alone, counted, "int64", ()),
    (masked, flagged, "bool", ()),
    (plain, two, "float64", ()),
    (plain, two, "float64", (nn.Dropout(0.5),)),
    (plain, two, "float64", (nn.BatchNorm1d(8),)),
    (in_turn, two, "float64", ()),
    (steep, two, "float64", ()),
    (near_its_minimum, two, "float64", ()),
]
NAMES = ["log", "mask", "plain", "dropout", "batch norm", "in turn", "steep", "near its minimum"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("objective", "function", "dtype", "beside"), RIGHT, ids=NAMES)
def test_a_whole_gradient_is_not_said_to_be_cut(objective, function, dtype, beside):
    network = make_network(*beside)
    said, gradient = trained(network, objective, make_box(function, dtype), 30)
    assert not [words for words in said if "cut off" in words or "which have none" in words]
    assert gradient.counts.checks >= 2


def absolute(network, w, box):
    return 1.0 + (box(network(w))[0] - 0.1 * torch.sin(w)).abs().sum(dim=1)


def saturating(network, w, box):
    error = (box(network(w))[0] - 0.1 * torch.sin(w)).square().sum(dim=1)
    return 1.0 + error / (error + 1e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("objective", [absolute, saturating])
def test_a_kink_in_front_of_which_a_network_already_stands_is_no_cut(objective):
    """Trained before by its own derivative: the loss rises on both sides, and its slope is small."""
    network, box = make_network(), make_box(two)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
    for step in range(800):
        optimizer.zero_grad()
        objective(network, batch(1000 + step), two).mean().backward()
        optimizer.step()
        schedule.step()
    said, gradient = trained(network, objective, box)
    assert gradient.counts.checks >= 1
    assert not [words for words in said if "cut off" in words]


# Specs without a derivative


def turned(x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x + angle), torch.cos(x)


def turning_box(**specs: bool) -> FromTorch:
    """Of a number and an angle; `angle` and `beside` say whether these specs have a derivative."""
    inputs = ArraySpec("x", (1,)), ArraySpec("angle", (1,), differentiable=specs.get("angle", True))
    outputs = (
        ArraySpec("total", (1,)),
        ArraySpec("beside", (1,), differentiable=specs.get("beside", True)),
    )
    return FromTorch(turned, inputs, outputs)


def with_angle(network, w, box):
    z = network(w)
    total, beside = box(z, 0.5 * z)
    return (total - w).square().mean(dim=1) + beside.square().mean(dim=1)


def with_detached_angle(network, w, box):
    z = network(w)
    total, _ = box(z, 0.5 * z.detach())
    return (total - w).square().mean(dim=1)


@pytest.mark.parametrize(
    ("objective", "specs", "named"),
    [
        (with_angle, {"angle": False}, ["'angle' (differentiable=False)"]),
        (with_angle, {"beside": False}, ["'beside' (differentiable=False)"]),
        (
            with_angle,
            {"angle": False, "beside": False},
            ["'angle' (differentiable=False)", "'beside' (differentiable=False)"],
        ),
        (with_angle, {}, []),
        (with_detached_angle, {"angle": False, "beside": False}, []),  # meant so; and nothing is used
    ],
)
def test_what_a_spec_without_derivative_takes_from_a_gradient_is_named_once(objective, specs, named):
    """Weights that move such an input, and a loss that goes by such an output."""
    said, _ = trained(make_network(), objective, turning_box(**specs), 3)
    found = [name for words in said for name in re.findall(r"'\w+' \(differentiable=False\)", words)]
    assert found == named


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x), torch.floor(3 * x).long()


def flagged_above(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x), x > 0


def beside(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x), 1 + x.square()


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    ("function", "spec"),
    [(whole, {"dtype": "int64"}), (flagged_above, {"dtype": "bool"}), (beside, {"differentiable": False})],
)
def test_what_a_replay_leaves_as_recorded_is_named_once(function, spec, used):
    """Where the loss goes by it; then gradients are others than autograd's at the same weights."""
    box = FromTorch(
        function, (ArraySpec("x", (1,)),), (ArraySpec("y", (1,)), ArraySpec("kept", (1,), **spec))
    )
    network = make_network()

    def loss(network: nn.Module, w: Tensor, box) -> Tensor:
        y, kept = box(network(w))
        return ((y - 1).square() * (kept.detach().to(y) if used else 1)).mean(1)

    gradient = zo.TangentGradient(
        network,
        lambda n, w: loss(n, w, box),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(lambda x: torch.sin(x)),
        limits=zo.tangents.Limits(clip=None, replays=2),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient.backward(batch(0))
        assert gradient.replays() == 2
        with torch.no_grad():
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter -= parameter.grad
        for _ in range(2):
            network.zero_grad()
            gradient.replay(last=True)
    named = [str(w.message) for w in said if "stay as recorded" in str(w.message)]
    assert len(named) == used
    assert all("'kept'" in words for words in named)
    reference = torch.autograd.grad(loss(network, batch(0), function).mean(), [*network.parameters()])
    pairs = zip(network.parameters(), reference, strict=True)
    right = all(p.grad is not None and torch.allclose(p.grad, g) for p, g in pairs)
    assert right is not used


def all_right(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x), torch.isfinite(x)


def of_a_mole(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(x), torch.full_like(x, 6e23)  # of which no float knows single ones


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    ("function", "spec"), [(all_right, {"dtype": "bool"}), (of_a_mole, {"differentiable": False})]
)
def test_an_output_that_all_rows_have_the_same_is_named_only_where_the_loss_goes_by_it(function, spec, used):
    box = FromTorch(
        function, (ArraySpec("x", (1,)),), (ArraySpec("y", (1,)), ArraySpec("kept", (1,), **spec))
    )

    def loss(network: nn.Module, w: Tensor) -> Tensor:
        y, kept = box(network(w))
        return ((y - 1).square() * (kept.to(y) if used else 1)).mean(1)

    tangent, limits = zo.tangents.ModelTangent(torch.sin), zo.tangents.Limits(replays=1)
    gradient = zo.TangentGradient(make_network(), loss, boxes=[box], tangent=tangent, limits=limits)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient.backward(batch(0))
        assert gradient.replays() == 1
        gradient.replay()
    assert any("'kept'" in str(w.message) for w in said) is used
