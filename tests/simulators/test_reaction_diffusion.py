"""Reaction and diffusion against SciPy's solver of loops over cells, rest states, and what is conserved."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from blackbox.errors import ConfigurationError
from simulators.reaction_diffusion import Brusselator, FitzHughNagumo, GrayScott, laplacian

REACTIONS = {
    Brusselator: lambda u, v, p: (p["a"] - (p["b"] + 1) * u + u**2 * v, p["b"] * u - u**2 * v),
    GrayScott: lambda u, v, p: (
        -u * v**2 + p["feed"] * (1 - u),
        u * v**2 - (p["feed"] + p["kill"]) * v,
    ),
    FitzHughNagumo: lambda u, v, p: (u - u**3 - v + p["current"], p["rate"] * (u - p["gamma"] * v)),
}


def by_loops(box, state: np.ndarray) -> np.ndarray:
    """The equations one cell at a time; negative indices wrap around."""
    _, height, width = state.shape
    change = np.empty_like(state)
    for y in range(height):
        for x in range(width):
            reacted = REACTIONS[type(box)](*state[:, y, x], vars(box))
            for species, diffusion in enumerate((box.diffusion_u, box.diffusion_v)):
                s = state[species]
                around = s[y - 1, x] + s[(y + 1) % height, x] + s[y, x - 1] + s[y, (x + 1) % width]
                change[species, y, x] = diffusion * (around - 4 * s[y, x]) + reacted[species]
    return change


@pytest.mark.parametrize("kind", list(REACTIONS))
def test_against_scipy(kind):
    box = kind(4, 5, dt=0.01, steps=20)
    state = kind(16, 16).start(2, seed=0).double()[0, :, 3:7, :5]
    solved = solve_ivp(
        lambda _, flat: by_loops(box, flat.reshape(state.shape)).ravel(),
        (0, 0.2),
        state.numpy().ravel(),
        rtol=1e-10,
        atol=1e-12,
    )
    found = box(state[None])[0].numpy().ravel()
    assert np.abs(found - solved.y[:, -1]).max() < 1e-8
    assert np.abs(found - state.numpy().ravel()).max() > 1e-5


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (1.0, 4.0), (1.0, 6.0), (2.0, 6.0)])
def test_the_brusselators_pulses_are_resolved_whatever_their_height(a, b):
    """From b = 4 on a step went wrong by a third of u and more, and at 6 the state blew up."""
    box, fine = Brusselator(4, 4, a=a, b=b), Brusselator(4, 4, a=a, b=b, dt=0.1 / 16, steps=16)
    before_a_pulse = torch.tensor([2 * a / (b + 1), 1.05 * (b + 1) ** 2 / (4 * a)], dtype=torch.float64)
    state = before_a_pulse[:, None, None].expand(1, 2, 4, 4)
    off, peak = [], 0.0
    for _ in range(16):
        after, exact = box.advance(state), fine.advance(state)
        off.append(float((after - exact).abs().max() / exact.abs().max()))
        state, peak = exact, max(peak, float(exact.max()))
    assert peak > 0.8 * (b + 1) ** 2 / (4 * a) and max(off) < 0.1


def test_a_brusselator_with_a_faster_reaction_says_so():
    class Faster(Brusselator):
        fastest = 100.0

    assert (Faster(4, 4).fastest, Faster(4, 4).substeps, Faster(4, 4, b=6.0).fastest) == (
        100.0,
        5,
        Brusselator(4, 4, b=6.0).fastest,
    )


@pytest.mark.parametrize(
    ("box", "rest"),
    [(Brusselator(a=1.2, b=1.5), (1.2, 1.25)), (GrayScott(), (1.0, 0.0)), (FitzHughNagumo(), (0.0, 0.0))],
)
def test_rest_states_rest(box, rest):
    state = torch.tensor(rest, dtype=torch.float64)[:, None, None].expand(1, 2, 16, 16)
    assert (box(state) - state).abs().max() < 1e-12


def test_diffusion_alone_conserves_the_sum_and_damps_each_wave_at_its_rate():
    """Without reaction (feed and kill 0, no v) a wave falls by exp(-D (2 - 2 cos k) t)."""
    box = GrayScott(8, 8, feed=0.0, kill=0.0, dt=0.5, steps=4)
    wave = torch.cos(2 * torch.pi * torch.arange(8, dtype=torch.float64) / 4).expand(8, 8)
    state = torch.stack([1 + wave, torch.zeros_like(wave)])[None]
    expected = 1 + wave * np.exp(-box.diffusion_u * 2.0 * 2.0)
    assert (box(state)[0, 0] - expected).abs().max() < 1e-4
    assert abs(float(box(state)[0, 0].sum()) - 64) < 1e-10


def test_the_laplacian_of_a_plane_wave():
    x = torch.arange(12, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * (x[:, None] / 12 + 2 * x[None] / 12))
    factor = 2 * np.cos(2 * np.pi / 12) + 2 * np.cos(4 * np.pi / 12) - 4
    assert (laplacian(wave) - factor * wave).abs().max() < 1e-12


@pytest.mark.slow
def test_patterns_live_on():
    """What `start` gives has structure: none of the three has come to rest."""
    for box in (Brusselator(), GrayScott(), FitzHughNagumo()):
        assert box.start(8, seed=0)[:, 0].flatten(1).std(1).median() > 0.02


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Brusselator, {"height": 3}, "height: expected a whole number >= 4"),
        (GrayScott, {"diffusion_u": -1.0}, "diffusion_u"),
        (FitzHughNagumo, {"rate": float("nan")}, "rate: expected a finite number"),
        (GrayScott, {"dt": 0.0}, "dt"),
    ],
)
def test_bad_settings_are_named(kind, settings, words):
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__}, {words}"):
        kind(**settings)
