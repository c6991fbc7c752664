"""Twins under learned rests: populations at a twentieth of the rows, with and without `prior=`.

    python -m benchmarks.rows.twins [PROBLEM ...] [--seeds 3 4]

A twin is what a user may have: a formula with other constants, a longer step of Euler's. A bad one is the
same with the wrong sign, or three times as large. Errors are over those of tuned first order with all rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import benchmarks.rows.training as training
import zo
from benchmarks.rows.comparison import BY_STEPS
from benchmarks.rows.training import train
from benchmarks.rows.ways import ALL_ROWS, Way
from benchmarks.tangents.filter import ladder
from benchmarks.tangents.problem import BenchmarkProblem
from benchmarks.tangents.problems import problems
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96
from simulators.oscillators import DoublePendulum
from zo.tangents import AutoTangent, Limits
from zo.tangents.population import FACTORS

Twin = Callable[..., Tensor]


def euler(f: Callable[[Tensor], Tensor], x: Tensor, dt: float, steps: int) -> Tensor:
    """Euler's steps."""
    for _ in range(steps):
        x = x + dt * f(x)
    return x


_ORDER = torch.tensor([0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11])
_UNITS = torch.logspace(-3, 3, 12)[_ORDER]
_LORENZ = Lorenz96(sites=12, forcing=8.0)
_PENDULUM = DoublePendulum(gravity=11.3)
_SLOWER = KuramotoSivashinsky(points=32, dt=0.5, steps=2, length=20.0)
_AWAY = (torch.arange(32) - 8 * torch.arange(4)[:, None] + 16) % 32 - 16
_OFF = torch.tensor([1.2, 0.85, 1.15, 0.85, 1.15])


def _mixed_units(state: Tensor) -> Tensor:
    units = _UNITS.to(state)
    return (euler(_LORENZ.tendency, (state * units)[:, None], 0.1, 1)[:, 0] / units).reshape(state.shape)


def _drone(state: Tensor, action: Tensor, g: float = 9.81) -> Tensor:
    def f(s: Tensor) -> Tensor:
        tilt, speed, thrust = s[:, 2], s[:, 3:], g * (1 + 0.65 * torch.tanh(action[:, 0]))
        turn = 8 * torch.tanh(action[:, 1])
        pushed = torch.stack([-thrust * torch.sin(tilt), thrust * torch.cos(tilt) - g, turn], -1)
        return torch.cat([speed, pushed], -1)

    return euler(f, state, 0.05, 2)


def _forced_lorenz(state: Tensor, action: Tensor) -> Tensor:
    def f(s: Tensor) -> Tensor:
        x, y, z = (10 * s).unbind(-1)
        flow = torch.stack([10 * (y - x), x * (24 - z) - y, x * y - 8 / 3 * z], -1)
        return flow / 10 + 2.5 * torch.tanh(action)

    return euler(f, state, 0.05, 2)


def _jets(state: Tensor, action: Tensor) -> Tensor:
    shape = torch.exp(-0.5 * (_AWAY / 2.6).square()).to(state)
    return _SLOWER.advance((state + 0.4 * torch.tanh(action) @ shape)[:, None])[:, 0]


TWINS: dict[str, Twin] = {
    "double-pendulum": lambda state: euler(_PENDULUM.tendency, state, 0.05, 2),
    "drone": _drone,
    "filter": lambda parts: ladder(parts * _OFF.to(parts)),
    "mixed-units": _mixed_units,
    "ks-32-jets": _jets,
    "forced-lorenz": _forced_lorenz,
}


def priors(twin: Twin) -> dict[str, Twin | None]:
    """What is put under the default: nothing, the twin, and two that are wrong."""
    return {
        "default": None,
        "twin": twin,
        "wrong sign": lambda *arrays: -twin(*arrays),
        "times three": lambda *arrays: 3 * twin(*arrays),
    }


def trained(problem: BenchmarkProblem, prior: Twin | None, seed: int) -> dict[str, Any]:
    """A population at a twentieth of the rows, above a prior."""
    tangents: list[zo.TangentGradient] = []

    def gradient_of(problem: BenchmarkProblem, way: Way, network: Any, seed: int, steps: int) -> Any:
        tangent = AutoTangent(problem.box, seed, prior=prior)
        gradient = zo.TangentGradient(
            network, problem.objective(problem.box), boxes=[problem.box], tangent=tangent,
            seed=seed, steps=steps, limits=Limits(early=1),
        )  # fmt: skip
        tangents.append(gradient)
        return gradient

    usual, training._gradient_of = training._gradient_of, gradient_of
    try:
        way = Way(0.05, 1, derivative="learned", replays=True, factors=FACTORS, surrogate=True)
        result = train(problem, way, seed)
    finally:
        training._gradient_of = usual
    used = tangents[0].tangents[0]
    assert isinstance(used, AutoTangent)
    return result | {"kind": used.kind, "asked": used.prior.rows if used.prior else 0}


def first(problem: BenchmarkProblem, twin: Twin, way: dict[str, Any], seed: int) -> Any:
    """A network that first order has trained on the twin alone: no row of the box."""
    kept: list[Any] = []

    def start(seed: int) -> Any:
        kept.append(problem.start(seed))
        return kept[0]

    train(replace(problem, exact=twin, start=start), Way(1.0, way["batch"], way["rate"]), seed)
    return kept[0]


def main() -> None:
    """Print one line for each training."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows.twins")
    parser.add_argument("problems", nargs="*", default=list(TWINS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--priors", nargs="+", default=["default", "twin", "wrong sign"])
    parser.add_argument("--first", action="store_true", help="train on the twin first, for no row")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for name in asked.problems:
            tuned = json.loads((BY_STEPS / f"{name}.json").read_text())["runs"][str(seed)][ALL_ROWS]
            for label in asked.priors:
                problem = problems("small")[name]()
                if asked.first:
                    begun = first(problem, TWINS[name], tuned, seed)
                    print(name, seed, "trained on the twin", f"{problem.error(begun) / tuned['error']:.2f}")
                    problem = replace(problem, start=lambda seed, begun=begun: begun)
                result = trained(problem, priors(TWINS[name])[label], seed)
                ratio = result["error"] / tuned["error"]
                print(
                    name, seed, label, f"{ratio:.2f}", result["kind"], result["rows"], result["asked"],
                    f"{result['seconds']:.0f} s", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
