"""Python functions that call the network from somebody else's loop, here that of SciPy's solve_ivp."""

import threading

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import ConfigurationError, RowFailedError
from blackbox.wrappers.identity import identity

Y, U = ArraySpec("y", (2,)), ArraySpec("u", (1,))
CASES = torch.arange(4)
STAGES = 3  # of RK23 in a step
H = 0.125


def start(case):
    return np.array([1.0 + 0.3 * case, 0.2 * case])


def oscillator(case, host):
    def rate(t, y):
        (u,) = host.exchange("force", y)
        return np.array([y[1], u - y[0]])

    solution = solve_ivp(rate, (0, 1), start(case), method="RK23", first_step=0.05)
    host.output("last", solution.y[:, -1])


def fixed_steps(case, host):
    def rate(t, y):
        (u,) = host.exchange("force", y)
        return np.array([y[1], u - y[0] ** 3])

    end = H * (2 + case)
    solve_ivp(rate, (0, end), start(case), method="RK23", first_step=H, max_step=H, rtol=1e3, atol=1e3)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def alone(net, case):
    """The same integration with the network in SciPy's own loop: what was seen, and the last state."""
    seen = []

    def rate(t, y):
        seen.append(y.copy())
        with torch.no_grad():
            (u,) = net(torch.as_tensor(y)[None])[0].numpy()
        return np.array([y[1], u - y[0]])

    solution = solve_ivp(rate, (0, 1), start(case), method="RK23", first_step=0.05)
    return np.array(seen), solution.y[:, -1]


def test_adaptive_steps_are_those_of_the_integrator_alone():
    call = Call("force", sees=Y, gives=U, stages=STAGES)
    host, net = Hosted(oscillator, calls=[call], outputs=[ArraySpec("last", (2,))]), network()
    with torch.no_grad():
        run = host.run(CASES, force=net, dtype=torch.float64)
    lengths = set()
    for row in range(4):
        seen, last = alone(net, row)
        assert run.force.mask[row].sum() == len(seen)
        assert np.allclose(run.force.y[row, : len(seen)], seen, atol=1e-12)
        assert np.allclose(run.outputs["last"][row], last, atol=1e-12)
        lengths.add(len(seen))
    assert len(lengths) > 1 and all(length % STAGES == 1 for length in lengths)
    assert host.counts.started == 4 and run.ended.all()


def twin():
    """The exact outcome of each stage of RK23 with a known step, for the box of that stage."""

    def rate(y, u):
        return torch.stack([y[..., 1], u[..., 0] - y[..., 0] ** 3], dim=-1)

    def first(y, y1, u1, y2, u2, u, *_):
        return y + H / 2 * rate(y, u)

    def second(y, y1, u1, y2, u2, u, *_):
        return y1 + 3 / 4 * H * rate(y, u)

    def third(y, y1, u1, y2, u2, u, *_):
        slope = 2 / 9 * rate(y2, u2) + 1 / 3 * rate(y1, u1) + 4 / 9 * rate(y, u)
        return y2 + H * slope

    return [zo.tangents.ModelTangent(f) for f in (first, second, third)]


@pytest.mark.slow
def test_the_gradient_through_stages_of_runs_of_different_length():
    """With the exact derivative of each stage it is what central differences of the whole loss say."""
    host, net = Hosted(fixed_steps, calls=[Call("force", sees=Y, gives=U, stages=STAGES)]), network()

    def objective(net, cases):
        force = host.run(cases, force=net, dtype=torch.float64).force
        return (force.y.square().sum(dim=2) * force.mask).sum(dim=1)

    cases = CASES[:3]
    gradient = zo.TangentGradient(
        net, objective, boxes=[host], tangent=twin(), limits=zo.tangents.Limits(excite=0.0), seed=0
    )
    gradient.backward(cases)
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    with torch.no_grad():
        counts = host.run(cases, force=net, dtype=torch.float64).force.mask.sum(dim=1).tolist()
        assert counts == [1 + STAGES * (2 + case) for case in range(3)]
        weights = nn.utils.parameters_to_vector(net.parameters()).clone()
        for way in torch.randn(3, len(weights), generator=torch.Generator().manual_seed(0)).double():
            ends = []
            for sign in (1, -1):
                nn.utils.vector_to_parameters(weights + sign * 1e-5 * way, net.parameters())
                ends.append(float(objective(net, cases).mean()))
            assert float(found @ way) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda case, host: [host.exchange("force", np.zeros(2)), [][1]], "IndexError: list index out of"),
        (lambda case, host: host.exchange("force", np.zeros(3)), r"expected the shape \(2,\)"),
        (lambda case, host: host.exchange("other", np.zeros(2)), "the program asks for 'other'"),
        (lambda case, host: None, r"ended without a call: .* or in a function host.exchange\). Row"),
        (lambda case, host: host.exchange("force", np.full(2, np.nan)), "NaN or infinity"),
    ],
)
def test_what_a_function_does_wrong_fails_its_row(function, words):
    host = Hosted(function, calls=[Call("force", sees=Y, gives=U)])
    with pytest.raises(RowFailedError, match=words):
        host.run([0], force=network().requires_grad_(False), dtype=torch.float64)


def test_runs_that_are_not_needed_any_more_end_at_their_next_call():
    def endless(case, host):
        while True:
            host.exchange("force", np.zeros(2))

    before = threading.active_count()
    host = Hosted(endless, calls=[Call("force", sees=Y, gives=U)])
    host.run(CASES, calls=2, force=network().requires_grad_(False), dtype=torch.float64)
    for thread in threading.enumerate():
        if thread.name.startswith("endless"):
            thread.join(20)
    assert threading.active_count() == before


def test_a_function_that_hangs_fails_its_row_and_is_left_behind():
    free = threading.Event()

    def hangs(case, host):
        host.exchange("force", np.zeros(2))
        free.wait(60)

    host = Hosted(hangs, calls=[Call("force", sees=Y, gives=U)], timeout=0.3)
    with pytest.raises(RowFailedError, match=r"sent nothing for 0\.3 s"):
        host.run([0], force=network().requires_grad_(False), dtype=torch.float64)
    free.set()


def test_what_a_function_has_no_use_for_is_refused():
    with pytest.raises(ConfigurationError, match="runs in no folder"):
        Hosted(oscillator, calls=[Call("force", sees=Y, gives=U)], prepare=lambda case, folder: None)


def test_another_function_is_another_identity():
    calls = [Call("force", sees=Y, gives=U)]
    one, same, other = (
        identity(Hosted(f, calls=calls).boxes[0]) for f in (oscillator, oscillator, fixed_steps)
    )
    assert one == same != other


def test_a_run_that_nothing_bounds_says_once_that_it_goes_on(limits):
    limits(calls_of_a_host=10)
    call = Call("force", sees=Y, gives=U, stages=STAGES)
    host, net = Hosted(oscillator, calls=[call], outputs=[ArraySpec("last", (2,))]), network()
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="called 10 times and goes on") as said:
        host.run(CASES, force=net, dtype=torch.float64)
        host.run(CASES, force=net, dtype=torch.float64)
    assert len(said) == 1 and "excite=0" in str(said[0].message)
