"""All problems by name.

The small systems are measured seldom (`corrections`); Kuramoto-Sivashinsky as published and the wake have
a loss after each call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.tangents import held_out
from benchmarks.tangents.boxes import InUnits
from benchmarks.tangents.controllers import TASKS, controller
from benchmarks.tangents.corrections import System, coarse, correction
from benchmarks.tangents.filter import design
from benchmarks.tangents.kuramoto_sivashinsky import PAPER_LEARNING_RATE, PAPER_STEPS, published
from benchmarks.tangents.problem import BenchmarkProblem
from simulators.advection_diffusion_reaction import AdvectionDiffusionReaction
from simulators.coupled_map_lattice import CoupledMapLattice
from simulators.implicit_diffusion import ImplicitDiffusion
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96
from simulators.oscillators import DoublePendulum, VanDerPol
from simulators.reaction_diffusion import Brusselator, FitzHughNagumo, GrayScott
from simulators.shallow_water import ShallowWater
from simulators.spectral import Vorticity, resampled

Size = Literal["small", "paper"]
KEEP: dict[str, Any] = {"failures": "keep"}


def problems(size: Size) -> dict[str, Callable[[], BenchmarkProblem]]:
    """All that have that size, by name; made when they are asked for, since some compute a reference first.

    Paper is as many steps as the published training amounts to.
    """
    return PAPER if size == "paper" else PROBLEMS


def seldom(wrong: Any, right: Any, hard: str, **more: Any) -> BenchmarkProblem:
    """The problem of a wrong system and the right one."""
    return correction(System(wrong, right, hard, **more))


def brusselator(hard: str, hidden: tuple[int, ...] = (16, 16), kernel: int = 5) -> BenchmarkProblem:
    """Oscillations of another rate: b is 3.2 instead of 3."""
    wrong, right = Brusselator(b=3.2, dt=0.25, **KEEP), Brusselator(dt=0.25)
    return seldom(wrong, right, hard, hidden=hidden, kernel=kernel)


def fitzhugh_nagumo(hard: str, **more: Any) -> BenchmarkProblem:
    """Recovery at a rate of .07 instead of .1."""
    return seldom(FitzHughNagumo(rate=0.07, dt=1.0, **KEEP), FitzHughNagumo(dt=1.0), hard, **more)


def pendulum(hard: str, wall: float | None = None) -> BenchmarkProblem:
    """A joint with friction that the reference does not have."""
    wrong = DoublePendulum(friction=0.1, wall=wall, steps=5, **KEEP)
    right = DoublePendulum(wall=wall, steps=5)
    return seldom(wrong, right, hard, hidden=(64, 64))


def mixed_units() -> BenchmarkProblem:
    """Lorenz-96 with 12 sites, whose numbers are in units from 1e-3 to 1e3."""
    units = torch.logspace(-3, 3, 12)[torch.tensor([0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11])]
    wrong = InUnits(Lorenz96(sites=12, forcing=7.0, dt=0.05, steps=2, **KEEP), units)
    right = InUnits(Lorenz96(sites=12, dt=0.05, steps=2), units)
    hard = "states from 1e-3 to 1e3: what is not standardised by number sees the largest alone"
    return seldom(wrong, right, hard, hidden=(64, 64))


def kolmogorov() -> BenchmarkProblem:
    """Kolmogorov flow on 64 x 64 points against 128 x 128, a tenth of an eddy's time in a call."""
    flow: dict[str, Any] = {"viscosity": 2e-3, "stirring": 1.0, "drag": 0.1}

    def states(rows: int, seed: int) -> Tensor:
        rough, fine = Vorticity(64, dt=0.01, steps=1000, **flow), Vorticity(128, dt=0.005, steps=200, **flow)
        return fine(resampled(rough(rough.start(rows, seed)), 128))

    return seldom(
        Vorticity(64, dt=0.0125, steps=8, **flow, **KEEP),
        Vorticity(128, dt=0.005, steps=20, **flow),
        "4,096 numbers, coupled by a pressure; corrections stay where they are made, so NOG is as good",
        seen=partial(resampled, points=64),
        states=states,
        batch=2,
        steps=60,
        length=12,
        trajectories=(8, 2, 6),
    )


def kuramoto_sivashinsky(hard: str, points: int = 64, **more: Any) -> BenchmarkProblem:
    """Kuramoto-Sivashinsky on a ring that is 2 % too long."""
    ring: dict[str, Any] = {"dt": 0.25, "steps": 4, "points": points}
    return seldom(KuramotoSivashinsky(length=22.5, **ring, **KEEP), KuramotoSivashinsky(**ring), hard, **more)


def wake(weights: str, hard: str, **more: Any) -> BenchmarkProblem:
    """The wake flow; imported when it is asked for, since PhiFlow takes seconds."""
    from benchmarks.tangents import wake

    return replace(wake.wake(weights, **more), hard=hard)


PUBLISHED = "as published, where the solver's gradient decides: "
PROBLEMS: dict[str, Callable[[], BenchmarkProblem]] = {
    "ks-26-8": partial(published, 26, 8, hard=PUBLISHED + "33,125 weights, unroll 3"),
    "ks-26-8-unroll-8": partial(
        published,
        26,
        8,
        unroll=8,
        steps=600,
        warm=800,
        hard=PUBLISHED + "over eight frames a network from scratch blows up, so it has a warm start",
    ),
    "ks-52-12": partial(published, 52, 12, steps=600, hard=PUBLISHED + "196,457 weights"),
    "ks-3k": partial(published, 16, 2, steps=800, warm=800, hard=PUBLISHED + "3,297 weights, warm start"),
    "ks-3k-noise": partial(
        published, 16, 2, steps=800, warm=800, noise=1e-3, hard="the same, and noise of 1e-3 in every answer"
    ),
    "kolmogorov": kolmogorov,
    "wake-1k": partial(wake, "1,010", "outputs obey a constraint that values do not show"),
    "wake-30k": partial(wake, "29,666", "the same, and the network no longer hides what the tangent lacks"),
    "wake-30k-unroll-16": partial(wake, "29,666", "twice the calls", unroll=16),
    "wake-260k": partial(wake, "260,354", "more weights than any estimate from the loss could reach"),
    "wake-32x64": partial(wake, "29,666", "4,096 numbers, for which no dense map is kept", width=32),
    "brusselator": partial(brusselator, "phase waves; a change of phase stays"),
    "brusselator-20k": partial(
        brusselator, "19,682 weights; probes took 14 times the rows", (32, 32, 32), kernel=3
    ),
    "gray-scott": lambda: seldom(
        GrayScott(feed=0.045, dt=10.0, **KEEP),
        GrayScott(dt=10.0),
        "ten substeps a call: a change goes far, and spots either live or die",
    ),
    "fitzhugh-nagumo": partial(
        fitzhugh_nagumo, "excitable: small changes die out, larger ones become pulses"
    ),
    "fitzhugh-nagumo-noise": partial(fitzhugh_nagumo, "the same, and noise of 1e-3", noise=1e-3),
    "fitzhugh-nagumo-failing": partial(fitzhugh_nagumo, "the same, and 1 % of the rows fail", failing=0.01),
    "shallow-water": lambda: seldom(
        ShallowWater(gravity=0.9, dt=0.5, steps=2, **KEEP),
        ShallowWater(dt=0.5, steps=2),
        "waves that a call carries on but does not damp: all corrections add up",
    ),
    "vorticity": lambda: seldom(
        Vorticity(32, viscosity=2e-2, dt=0.02, steps=5, **KEEP),
        Vorticity(32, viscosity=1e-2, dt=0.02, steps=5),
        "a Poisson equation: every cell feels every other; corrections stay, so NOG is as good",
    ),
    "lorenz-96": lambda: seldom(
        Lorenz96(dt=0.125, **KEEP),
        Lorenz96(dt=0.025, steps=5),
        "chaos; steps five times too long, of which little can be corrected",
    ),
    "coupled-map": lambda: seldom(
        CoupledMapLattice(coupling=0.25, **KEEP),
        CoupledMapLattice(),
        "a change grows by half in each call",
        unroll=4,
    ),
    "implicit-diffusion": lambda: seldom(
        ImplicitDiffusion(floor=0.3, dt=0.2, **KEEP),
        ImplicitDiffusion(dt=0.2),
        "implicit steps, every cell feels every other, walls; diffusion forgets, so NOG is as good",
        periodic=False,
    ),
    "advection-reaction": lambda: seldom(
        AdvectionDiffusionReaction(16, 16, dt=0.25, diffusion=0.05, reaction=1.0, **KEEP),
        AdvectionDiffusionReaction(32, 32, dt=0.5),
        "shocks and limiters: derivatives that jump",
        seen=coarse,
    ),
    "van-der-pol": lambda: seldom(
        VanDerPol(stiffness=15.0, steps=10, **KEEP),
        VanDerPol(steps=10),
        "stiff: a call forgets one of its two inputs, and jumps come early or late",
        hidden=(64, 64),
    ),
    "double-pendulum": partial(pendulum, "four numbers, chaos, angles beside velocities"),
    "double-pendulum-wall": partial(pendulum, "the same, and impacts, at which the response jumps", wall=0.3),
    "mixed-units": mixed_units,
    "filter": design,
    "kuramoto-sivashinsky": partial(
        kuramoto_sivashinsky, "chaos, and a response that depends on the state throughout"
    ),
    "kuramoto-sivashinsky-32": partial(kuramoto_sivashinsky, "the same, on half of the points", points=32),
    **{name: lambda make=make: controller(make()) for name, make in TASKS.items()},
    **held_out.PROBLEMS,
}
HELD_OUT = tuple(held_out.PROBLEMS)  # on which no rule, constant or default of the library was chosen
DESIGNS = tuple(held_out.DESIGNS)  # whose batches cost no row, as those of controllers
CONTROLLERS = (*TASKS, *held_out.CONTROLLERS)  # all others are corrections, and a filter's design

PAPER: dict[str, Callable[[], BenchmarkProblem]] = {
    name: partial(
        published,
        channels,
        blocks,
        unroll=unroll,
        steps=PAPER_STEPS,
        learning_rate=PAPER_LEARNING_RATE,
        hard=PUBLISHED,
    )
    for name, channels, blocks, unroll in (
        ("ks-26-8", 26, 8, 3),
        ("ks-26-8-unroll-8", 26, 8, 8),
        ("ks-52-12", 52, 12, 3),
    )
}
