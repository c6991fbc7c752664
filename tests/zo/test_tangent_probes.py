"""Where trust is lost in training, probes are added, the rows that they take are bounded, and it is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.chains import QUICK, X, bent, chain, flat_grads, make_network, true_grads
from tests.zo.row_boxes import FromTorch, weights
from zo import TrustPolicy
from zo.errors import TangentWarning


def lattice(x):
    """Coupled logistic maps on a ring, chaotic; the derivative turns round with the state."""
    y = 1 - 1.8 * x * x
    return 0.8 * y + 0.1 * y.roll(1, dims=-1) + 0.1 * y.roll(-1, dims=-1)


RING = ArraySpec("x", (1, 12))


class Controller(nn.Module):
    """Adds a little to the state of a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 6, 3, padding=1, padding_mode="circular"),
            nn.Tanh(),
            nn.Conv1d(6, 1, 3, padding=1, padding_mode="circular"),
        )

    def forward(self, x):
        return 0.05 * torch.tanh(self.layers(x))


def ring_gradient(tangent, policy=QUICK, mu=1e-3, max_rows=9.1, probes=2):
    torch.manual_seed(0)
    network, box = Controller().double(), FromTorch(lattice, (RING,), (RING,))

    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(3):
            state = box(state + network(state))
            loss = loss + state.square().flatten(1).mean(dim=1)
        return loss

    return zo.ProbedGradient(
        network,
        objective,
        boxes=[box],
        tangent=tangent,
        probes=probes,
        mu=mu,
        max_rows=max_rows,
        trust_policy=policy,
    )


def train(gradient, steps, start=0) -> list[int]:
    """Optimiser steps on states of the lattice; the probes after each."""
    optimizer, probes = torch.optim.SGD(gradient.network.parameters(), lr=0.05), []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        gradient.backward(lattice(lattice(torch.tanh(weights(4, 1, 12, seed=step)))))
        optimizer.step()
        probes.append(gradient.watch.probes)
    return probes


@pytest.mark.slow
def test_a_tangent_without_the_state_on_a_chaotic_box_is_found_out():
    gradient = ring_gradient(zo.LowRankTangent())
    with pytest.warns(TangentWarning) as caught:
        probes = train(gradient, 20)
    assert gradient.watch.lost and probes[-1] == 8
    *grown, last = caught
    assert [
        f"From now on {more} probes" in str(warning.message)
        for more, warning in zip((4, 8), grown, strict=True)
    ]
    assert "9 times the rows of a first-order step instead of 5, within max_rows=9.1" in str(grown[1].message)
    words = str(last.message)
    expected = (
        "with 8 probes",
        "sparse coordinates (sparse-cge)",
        "SecantTangent outermost (secant)",
        "StudentTangent (student)",
        "zo.KeepBest",
        "max_rows=9.1",
        "take 17 times",
    )
    assert all(word in words for word in expected)
    assert {warning.filename for warning in caught} == {__file__}
    assert float(words.split("found ")[1].split(" over")[0]) == pytest.approx(gradient.watch.error, rel=0.3)


@pytest.mark.parametrize(
    ("tangent", "advice"),
    [
        (zo.SecantTangent(), "(sparse-cge); or take a StudentTangent (student), or allow more probes"),
        (
            zo.StudentTangent(torch.nn.Linear(12, 12), loss="squared"),
            "put SecantTangent outermost (secant), or allow",
        ),
        (None, "(sparse-cge); or take a StudentTangent (student), or"),  # secant around a model or a low rank
    ],
)
def test_no_one_is_advised_to_take_what_is_there(tangent, advice):
    gradient = ring_gradient(tangent, probes=1, max_rows=2.1)
    with pytest.warns(TangentWarning) as caught:
        for step in range(60):
            gradient.watch.saw(step, 2.0)
    assert advice in str(caught[-1].message)


def test_a_tangent_that_is_exact_there_needs_no_probes():
    gradient = ring_gradient(zo.StencilTangent(), probes=0)
    assert set(train(gradient, 16)) == {0} and not gradient.watch.lost


def test_one_that_needs_them_gets_them_and_is_trusted_again():
    """Up to 16 probes, which span the ring's twelve numbers without the one that is predicted: no warning."""
    policy = TrustPolicy(lost=0.02, regained=0.01, check_every=None, average=3)
    gradient, probes = ring_gradient(zo.SecantTangent(), policy, mu=1e-5, max_rows=17), [2]
    with pytest.warns(TangentWarning, match="From now on") as caught:
        while not (16 in probes and probes[-1] == 8) and len(probes) < 60:
            probes += train(gradient, 1, start=len(probes))
    assert len(caught) == 3
    assert [a for a, b in zip(probes, [*probes[1:], 0], strict=True) if a != b] == [2, 4, 8, 16, 8]


@pytest.mark.slow
def test_checks_against_the_true_gradient_find_it_out_too():
    """With errors out of account: the loss does not fall along the gradient as that says."""
    policy = TrustPolicy(lost=1e9, regained=1e9, agreement=0.9, check_every=6, average=5)
    assert max(train(ring_gradient(zo.StencilTangent(), policy), 20)) == 2
    with pytest.warns(TangentWarning) as caught:
        assert max(train(ring_gradient(zo.LowRankTangent(), policy), 20)) > 2
    words = str(caught[0].message)
    agreement = float(words.split("found ")[1].split(" times")[0])
    assert agreement < 0.9 and "relative error" not in words
    assert "From now on 4 probes" in words


class DoublePendulum(FromTorch):
    """Two angles and two angular velocities, both bars and masses one, g = 9.81: one Runge-Kutta step."""

    def __init__(self, dt: float = 0.1) -> None:
        spec = ArraySpec("state", (4,))
        super().__init__(lambda state: self.step(state, dt), (spec,), (spec,))

    @staticmethod
    def rates(state):
        a, b, va, vb = state.unbind(dim=1)
        d, g = a - b, 9.81
        bottom = 3 - torch.cos(2 * d)
        turning = vb**2 + va**2 * d.cos()
        first = -3 * g * a.sin() - g * (a - 2 * b).sin() - 2 * d.sin() * turning
        second = 2 * d.sin() * (2 * va**2 + 2 * g * a.cos() + vb**2 * d.cos())
        return torch.stack([va, vb, first / bottom, second / bottom], dim=1)

    @classmethod
    def step(cls, state, dt):
        k1 = cls.rates(state)
        k2 = cls.rates(state + dt / 2 * k1)
        k3 = cls.rates(state + dt / 2 * k2)
        k4 = cls.rates(state + dt * k3)
        return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@pytest.mark.slow
def test_where_the_gradient_turns_it_is_said():
    """A double pendulum pushed by a network: two probes show too little, and the budget allows no more."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    box = DoublePendulum()

    def objective(call):
        def losses(network, batch):
            state = batch
            for _ in range(12):
                state = call(state + 0.1 * network(torch.sin(state)))
            return (state[:, :2] - 1).square().sum(dim=1)

        return losses

    tangent = zo.SecantTangent(zo.LowRankTangent())
    gradient = zo.ProbedGradient(network, objective(box), boxes=[box], tangent=tangent, probes=2)
    optimizer, cosines = torch.optim.Adam(network.parameters(), lr=1e-2), []
    with pytest.warns(TangentWarning, match="max_rows=3.5 allows no more") as caught:
        for step in range(25):
            optimizer.zero_grad()
            batch = 2.0 * weights(4, 4, seed=step)
            true = true_grads(objective(lambda state: DoublePendulum.step(state, 0.1)), network, batch)
            gradient.backward(batch)
            grad = flat_grads(network)
            cosines.append(float(grad @ true / grad.norm() / true.norm()))
            optimizer.step()
    assert min(cosines) < 0.5  # it was worth a word
    assert len(caught) == 1 and gradient.watch.lost
    assert gradient.counts.rows == box.ledger.rows_run <= 3.5 * 25 * 4 * 12  # and nothing was spent unasked


@pytest.mark.slow
def test_what_does_not_learn_gets_no_more_probes_but_is_named():
    policy = TrustPolicy(lost=1e9, regained=1e9, agreement=0.9, check_every=6, average=5)
    with pytest.warns(zo.TangentWarning, match="take a tangent that learns"):
        assert max(train(ring_gradient(zo.IdentityTangent(), policy), 20)) == 2


@pytest.mark.slow
def test_resume_to_the_bit_amid_lost_trust(tmp_path):
    policy = TrustPolicy(check_every=4, average=2)

    def run(resume):
        gradient = ring_gradient(zo.LowRankTangent(), policy)
        probes = []
        for start in range(0, 16, 2):
            if resume:
                torch.save(gradient.state_dict(), tmp_path / "state.pt")
                network = gradient.network
                gradient = ring_gradient(zo.LowRankTangent(), policy)
                gradient.network.load_state_dict(network.state_dict())
                gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            probes += train(gradient, 2, start)
        flat = torch.cat([p.detach().flatten() for p in gradient.network.parameters()])
        return probes, flat, gradient.watch.error

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probes, flat, error = run(False)
        count = len(caught)
        again = run(True)
    assert probes == again[0] and len(set(probes)) > 2
    assert torch.equal(flat, again[1]) and error == again[2]
    assert len(caught) == 2 * count


@pytest.mark.parametrize("max_rows", [*(pytest.param(rows, marks=pytest.mark.slow) for rows in (None, 6)), 4])
def test_a_step_takes_no_more_rows_on_average_than_it_says(max_rows):
    """Three probes and a check in every second step are 4.5 times a first-order step's rows."""
    box = FromTorch(bent, (X,), (X,))
    gradient = zo.ProbedGradient(
        make_network(),
        chain(box),
        boxes=[box],
        probes=3,
        max_rows=max_rows,
        trust_policy=TrustPolicy(check_every=2, lost=1e9, regained=1e9, agreement=-1e9),
    )
    for step in range(4):
        gradient.backward(weights(5, 4, seed=step))
    assert box.ledger.rows_run == 4.5 * 4 * 5 * 3 <= gradient.watch.max_rows * 4 * 5 * 3
    assert f"max_rows={gradient.watch.max_rows:g}" in repr(gradient)
    assert gradient.watch.max_rows == (6 if max_rows == 6 else 4.5)


def test_a_misspelt_argument_of_a_probed_gradient_is_refused():
    network, box = nn.Linear(3, 3), FromTorch(torch.sin, (ArraySpec("x", (3,)),), (ArraySpec("y", (3,)),))
    for name, meant in (("probe", "probes"), ("sed", "seed"), ("max_row", "max_rows")):
        with pytest.raises(
            zo.ConfigurationError, match=f"ProbedGradient.*got '{name}'. Did you mean '{meant}'"
        ):
            zo.ProbedGradient(network, lambda n, x: box(n(x)).sum(dim=1), boxes=[box], **{name: 1})
