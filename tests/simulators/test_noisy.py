"""Noise around a black box: its size, what it leaves alone, and that a run can be repeated and resumed."""

import pickle

import pytest
import torch

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import ConfigurationError
from simulators.lorenz96 import Lorenz96
from simulators.noisy import Noisy


class Halves(BlackBoxFunction):
    """Half of its input, how often a half fits, and a failure above 10."""

    arrays = "torch"
    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("half", (3,)), ArraySpec("count", (), dtype="int64"))

    def evaluate_rows(self, x):
        if (x > 10).any():
            raise ValueError("above 10")
        return x / 2, (x.sum(1) * 2).long()


@pytest.fixture
def states():
    return Lorenz96(sites=8).start(2000, seed=0)


def test_the_noise_is_gaussian_of_the_scale_that_it_says(states):
    """16,000 draws: 4 standard errors of mean and deviation, so one false alarm in about 8,000 runs."""
    box = Lorenz96(sites=8)
    noise = (Noisy(box, 0.3, seed=1)(states.double()) - box(states.double())).flatten() / 0.3
    assert abs(float(noise.mean())) < 4 / 16000**0.5
    assert abs(float(noise.std()) - 1) < 4 / 32000**0.5
    assert abs(float((noise.abs() < 1).double().mean()) - 0.6827) < 4 * (0.68 * 0.32 / 16000) ** 0.5


def test_each_call_draws_anew_and_a_run_can_be_repeated(states):
    noisy, again, other = (Noisy(Lorenz96(sites=8), 1e-2, seed=seed) for seed in (5, 5, 6))
    first, second = noisy(states), noisy(states)
    assert not torch.equal(first, second)
    assert torch.equal(again(states), first) and torch.equal(again(states), second)
    assert not torch.equal(other(states), first)
    assert noisy.deterministic is False and noisy.box.deterministic is True


def test_a_resumed_run_goes_on_where_it_was(states):
    noisy = Noisy(Lorenz96(sites=8), 1e-2)
    noisy(states)
    saved, frozen = noisy.state_dict(), pickle.dumps(noisy)
    expected = noisy(states)
    resumed = Noisy(Lorenz96(sites=8), 1e-2)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed(states), expected)
    assert torch.equal(pickle.loads(frozen)(states), expected)


def test_precision_changes_the_rounding_of_the_draws_alone(states):
    fine = Noisy(Lorenz96(sites=8), 0.1)(states.double())
    assert (fine - Noisy(Lorenz96(sites=8), 0.1)(states)).abs().max() < 1e-5


def test_the_global_generator_is_left_alone(states):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Noisy(Lorenz96(sites=8), 0.1)(states)
    assert torch.equal(torch.get_rng_state(), before)


def test_integers_and_failed_rows_stay_as_they_are():
    box = Halves(failures="keep")
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 20.0, 3.0], [4.0, 5.0, 6.0]])
    half, count = Noisy(box, 0.1)(x)
    assert count.tolist() == [12, 0, 30]
    assert half[1].isnan().all()
    change = (half - x / 2)[[0, 2]]
    assert (change != 0).all() and change.abs().max() < 1
    assert box.ledger.rows_failed == 1


def test_no_noise_is_no_change(states):
    box = Lorenz96(sites=8)
    assert torch.equal(Noisy(box, 0.0)(states), box(states))


def test_the_repr_names_box_and_noise():
    assert repr(Noisy(Halves(), 1e-4, seed=2)) == "Noisy(Halves, scale=0.0001, seed=2)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": -1.0}, "scale: expected a finite number >= 0, got -1.0"),
        ({"scale": float("inf")}, "scale"),
        ({"scale": 1.0, "seed": -1}, "seed: expected a whole number >= 0, got -1"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigurationError, match=f"Noisy, {words}"):
        Noisy(Halves(), **settings)


def test_a_state_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="calls"):
        Noisy(Halves(), 0.1).load_state_dict({"calls": -2})
