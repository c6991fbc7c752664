"""Gradients through the solver at the size of the published source, each against an independent one.

Tolerances are those of a table that was measured once, on eight steps of 32 x 64 cells with another
network of 954 weights and another flow: relative errors of finite differences of the weights, by precision
and mu, and cosines of the gradient with the solver's derivative replaced. They are taken `OTHER` times as
wide.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tasks
import zo
from simulators.wake_flow import ReferenceSettings, WakeFlow, load_or_compute
from simulators.wake_flow.staggered import start
from tasks.applications.wake_flow import Corrector, Scales, window_loss
from tasks.applications.wake_flow.data import Flows
from tasks.applications.wake_flow.networks import plain

OTHER = 3
WIDTH, STEPS, BATCH = 32, 8, 2
CENTRAL = {1e-2: 2.2e-3, 1e-3: 2.7e-4, 1e-4: 3e-5}  # float64, by mu
SINGLE = {("forward", 1e-4): 7e-3, ("central", 1e-3): 5e-4}  # float32
IDENTITY = {4: 0.98, 8: 0.95}  # cosines, by steps
COORDINATES = 1.0 - 5e-5  # cosine 1.0000 with all coordinates of the solver's input, four decimals


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> tuple[Tensor, Tensor]:
    settings = ReferenceSettings((120.0, 480.0), WIDTH, 64, warm_up=240, frames=STEPS + 1)
    flows = load_or_compute(settings, tmp_path_factory.mktemp("data"))
    return Flows(flows.frames, flows.reynolds).windows(zo.estimators.Key(0), BATCH, STEPS)


@pytest.fixture(scope="module")
def solver() -> WakeFlow:
    return WakeFlow(WIDTH)


def network(hidden: int, dtype: torch.dtype) -> Corrector:
    torch.manual_seed(0)
    return Corrector(plain((hidden,)), Scales(0.3, 300.0, 0.04)).to(dtype)


def flat(model: Corrector) -> Tensor:
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


def first_order(model: Corrector, solver: WakeFlow, batch: tuple[Tensor, Tensor]) -> Tensor:
    """FO-SOL's gradient, as the method takes it, in float64."""
    model = model.double()
    model.zero_grad()
    gradient = tasks.methods.AutogradGradient(model, window_loss(solver.step, 0.3), {})
    gradient.backward((batch[0].double(), batch[1].double()))
    assert gradient.counts.lost == 0
    return flat(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mu", "error"),
    [pytest.param(*pair, marks=[] if pair[0] == 1e-3 else pytest.mark.slow) for pair in CENTRAL.items()],
)
def test_first_order_is_the_limit_of_central_differences(batch, solver, mu, error):
    model = network(8, torch.float64)
    truth = first_order(model, solver, batch)
    objective = window_loss(solver.step, 0.3)
    doubles = batch[0].double(), batch[1].double()
    count = 24 if mu == 1e-3 else len(truth)
    chosen = torch.randperm(len(truth), generator=torch.Generator().manual_seed(1))[:count]
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    found = torch.zeros(len(chosen), dtype=torch.float64)
    with torch.no_grad():
        for place, index in enumerate(chosen):
            for sign in (1, -1):
                moved = weights.clone()
                moved[index] += sign * mu
                torch.nn.utils.vector_to_parameters(moved, model.parameters())
                found[place] += sign * objective(model, doubles).mean() / (2 * mu)
    assert (found - truth[chosen]).norm() < OTHER * error * truth[chosen].norm()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "mu"), SINGLE)
def test_zeroth_order_of_the_whole_loss_is_first_order(batch, solver, scheme, mu):
    """In float32, as ZO-SOL runs; on a tenth of the coordinates."""
    model = network(8, torch.float32)
    chosen = torch.arange(0, 1010, 10)
    estimator = zo.CGE(mu, zo.estimators.FixedCoordinates(chosen), central=scheme == "central")
    zo.LossGradient(model, window_loss(solver, 0.3), estimator).backward(batch)
    found = flat(model)[chosen]
    truth = first_order(model, solver, batch)[chosen]
    assert (found - truth).norm() < OTHER * SINGLE[scheme, mu] * truth.norm()


def cosine(found: Tensor, truth: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found, truth, dim=0))


def around(
    model: Corrector, solver: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor]
) -> Tensor:
    tasks.methods.AutogradGradient(model, window_loss(solver, 0.3), {}).backward(batch)
    return flat(model)


def test_the_chain_with_all_coordinates_is_first_order():
    """On a coarser grid, where a solver step has 256 coordinates and not 4,096; four steps."""
    solver = WakeFlow(8)
    frames, reynolds = developed(solver, 40), torch.tensor([120.0, 480.0])
    batch = frames[:, -5:], reynolds
    model = network(4, torch.float32)
    estimator = zo.CGE(1e-2, central=True)
    found = around(model, zo.differentiable(solver, estimator), batch)
    before = solver.ledger.rows_run
    truth = first_order(model, solver, batch)
    assert cosine(found, truth) > COORDINATES
    assert solver.ledger.rows_run == before  # the first order asks the box for nothing


def developed(solver: WakeFlow, steps: int) -> Tensor:
    """Frames `(2, steps + 1, 2, height, width)` that the network is to reach: of the solver, a bit faster."""
    frames = [start(solver.step.channel).repeat(2, 1, 1, 1)]
    for _ in range(steps):
        frames.append(solver(frames[-1], torch.tensor([120.0, 480.0])))
    return torch.stack(frames, dim=1) * 1.05


def test_directions_of_the_chain_that_span_the_solver_s_input_are_first_order():
    solver = WakeFlow(8)
    batch = developed(solver, 40)[:, -4:], torch.tensor([120.0, 480.0])
    model = network(4, torch.float32)
    directions = zo.box_gradient.RowRGE(1e-2, 256, central=True)
    found = around(model, zo.differentiable(solver, directions, seed=0), batch)
    assert cosine(found, first_order(model, solver, batch)) > COORDINATES


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("steps", "expected"), IDENTITY.items())
def test_the_identity_for_the_solver_s_derivative_is_as_far_off_as_measured(batch, solver, steps, expected):
    short = batch[0][:, : steps + 1], batch[1]
    model = network(8, torch.float32)
    before = solver.ledger.rows_run
    found = around(model, zo.differentiable(solver, tangent=zo.tangents.IdentityTangent()), short)
    assert solver.ledger.rows_run - before == BATCH * steps  # no queries
    deviation = 1 - cosine(found, first_order(model, solver, short))
    assert 1e-4 < deviation < OTHER * (1 - expected)


class LosingOneFlow(WakeFlow):
    """Loses the rows at Re 480."""

    def evaluate_rows(self, velocity, reynolds):
        out = super().evaluate_rows(velocity, reynolds)
        out[reynolds == 480.0] = float("nan")
        return out


@pytest.mark.parametrize("tangent", [None, zo.tangents.IdentityTangent()], ids=["chain", "identity"])
def test_windows_that_the_solver_lost_have_no_part_in_the_gradient(tangent):
    """As if they had not been in the batch, and as if they had cost nothing more."""
    frames, reynolds = developed(WakeFlow(8), 40)[:, -4:], torch.tensor([120.0, 480.0])
    model, found = network(4, torch.float32), []
    for box, batch in (
        (LosingOneFlow(8, failures="keep"), (frames, reynolds)),
        (WakeFlow(8), (frames[:1], reynolds[:1])),
    ):
        model.zero_grad()
        directions = None if tangent else zo.CGE(1e-2)
        around(model, zo.differentiable(box, directions, tangent=tangent, seed=0), batch)
        found.append(flat(model))
    assert found[0].isfinite().all()
    assert (found[0] - found[1]).norm() < 1e-3 * found[1].norm()
