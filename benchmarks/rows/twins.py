"""Twins under learned rests: populations at a share of the rows, with and without `prior=`.

    python -m benchmarks twins --size ci       three steps of one problem; written nowhere
    python -m benchmarks twins --size small    all problems at a twentieth, seeds 3 and 4
    python -m benchmarks twins --size small --shares 0.2 --seeds 3

A twin is what a user may have: a formula with other constants, a longer step of Euler's. A bad one is the
same with the wrong sign, or three times as large. Errors are over those of tuned first order with all rows.
Those have been measured by `rows --steps`. Results go into `benchmarks/results/twins.json` as they come; what
is there is not measured again. `twins.md` beside it has the table.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import benchmarks.rows.training as training
import zo
from benchmarks import protocol
from benchmarks.rows.comparison import BY_STEPS
from benchmarks.rows.training import train
from benchmarks.rows.ways import ALL_ROWS, Way
from benchmarks.tangents.filter import ladder
from benchmarks.tangents.problem import BenchmarkProblem
from benchmarks.tangents.problems import problems
from simulators.coupled_map_lattice import CoupledMapLattice
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96
from simulators.oscillators import DoublePendulum, VanDerPol
from tasks.folder import atomic
from zo.tangents import AutoTangent, Limits
from zo.tangents.population import FACTORS

FILE = protocol.RESULTS / "twins.json"
SHARES = 0.05, 0.2  # of first order's rows
DEFAULT, TWIN, FIRST = "default", "twin", "twin, trained on it first"
USUAL = DEFAULT, TWIN, "wrong sign"  # of what is put under the default
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
_RELAXED = VanDerPol(stiffness=12.0, dt=0.04, steps=5)
_MAPS = CoupledMapLattice(coupling=0.2, nonlinearity=1.8)
_SHORTER = KuramotoSivashinsky(points=64, dt=0.5, steps=2, length=20.0)
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


def _torque(state: Tensor, action: Tensor) -> Tensor:
    def f(s: Tensor) -> Tensor:
        angle, speed = s.unbind(-1)
        return torch.stack([speed, 5 * torch.tanh(action[:, 0]) - 11 * torch.sin(angle)], -1)

    return euler(f, state, 0.1, 2)


def _kicked(state: Tensor, action: Tensor) -> Tensor:
    place, speed = state[:, :2], state[:, 2:] + 0.25 * torch.tanh(action)
    for _ in range(2):  # each of Euler's, first of the place
        place = place + 0.25 * speed
        x, y = place.unbind(-1)
        speed = speed - 0.25 * torch.stack([x + 1.6 * x * y, y + 0.8 * (x.square() - y.square())], -1)
    return torch.cat([place, speed], -1)


def _tank(state: Tensor, action: Tensor) -> Tensor:
    def f(s: Tensor) -> Tensor:
        conversion, temperature = s.unbind(-1)
        reaction = 0.072 * (1 - conversion) * torch.exp(0.9 * temperature)  # a rate without its limit
        cooled = temperature - 0.36 * (2 * torch.tanh(action[:, 0]) - temperature)
        return torch.stack([reaction - conversion, 7 * reaction - cooled], -1)

    return euler(f, state, 0.125, 2)


def _car(state: Tensor, action: Tensor) -> Tensor:
    steer, speed = 0.3 * torch.tanh(action[:, 0]), 20.0

    def f(s: Tensor) -> Tensor:  # tyres that are softer, and slide later
        _, heading, slip, yaw = s.unbind(-1)
        front, rear = (
            3.5 * torch.tanh(50 / 7 * angle)
            for angle in (steer - (slip + 1.2 * yaw) / speed, -(slip - 1.5 * yaw) / speed)
        )
        turn = (1.2 * front - 1.5 * rear) / 1.6
        return torch.stack([speed * heading + slip, yaw, front + rear - speed * yaw, turn], -1)

    return euler(f, state, 0.05, 2)


TWINS: dict[str, Twin] = {  # cheapest first
    "filter": lambda parts: ladder(parts * _OFF.to(parts)),
    "van-der-pol": _RELAXED.advance,
    "torque-pendulum": _torque,
    "double-pendulum": lambda state: euler(_PENDULUM.tendency, state, 0.05, 2),
    "ks-32-jets": _jets,
    "henon-heiles": _kicked,
    "forced-lorenz": _forced_lorenz,
    "bicycle": _car,
    "stirred-tank": _tank,
    "coupled-map": _MAPS.advance,
    "drone": _drone,
    "mixed-units": _mixed_units,
    "kuramoto-sivashinsky": _SHORTER.advance,
}


def priors(twin: Twin) -> dict[str, Twin | None]:
    """What is put under the default: nothing, the twin, and two that are wrong."""
    return {
        DEFAULT: None,
        TWIN: twin,
        FIRST: twin,
        "wrong sign": lambda *arrays: -twin(*arrays),
        "times three": lambda *arrays: 3 * twin(*arrays),
    }


def trained(
    problem: BenchmarkProblem, prior: Twin | None, seed: int, share: float, most: int | None = None
) -> dict[str, Any]:
    """A population at a share of the rows, or of so many steps, above a prior."""
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
        way = Way(share, 1, derivative="learned", replays=True, factors=FACTORS, surrogate=True)
        result = train(problem, way, seed, most)
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


def measure(name: str, label: str, seed: int, share: float) -> dict[str, Any]:
    """A training, and its error over that of tuned first order with all rows."""
    lines = json.loads((BY_STEPS / f"{name}.json").read_text())["runs"][str(seed)]
    tuned = lines[ALL_ROWS]
    problem, more = problems("small")[name](), dict[str, Any]()
    if label == FIRST:
        begun = first(problem, TWINS[name], tuned, seed)
        more = {"ratio after the twin": problem.error(begun) / tuned["error"]}
        problem = replace(problem, start=lambda seed: begun)
    result = trained(problem, priors(TWINS[name])[label], seed, share)
    return {"ratio": result["error"] / tuned["error"], **more, **result}


def main(words: Sequence[str]) -> None:
    """Measure what is not there yet, and write the table."""
    parser = protocol.options("twins", __doc__)
    parser.add_argument("--problems", nargs="+", choices=tuple(TWINS), default=list(TWINS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=[SHARES[0]])
    parser.add_argument("--priors", nargs="+", choices=tuple(priors(_drone)), default=USUAL)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        name = "double-pendulum"
        result = trained(problems("small")[name](), TWINS[name], 3, SHARES[0], most=3)
        print(f"{name}, {TWIN}: {result['error']:.4f}, {result['rows']} rows, {result['asked']} of the twin")
        return
    runs: dict[str, Any] = json.loads(FILE.read_text())["runs"] if FILE.exists() else {}
    for share, name, seed, label in itertools.product(
        asked.shares, asked.problems, asked.seeds, asked.priors
    ):
        of_seed = runs.setdefault(str(share), {}).setdefault(name, {}).setdefault(str(seed), {})
        if label not in of_seed:
            of_seed[label] = result = measure(name, label, seed, share)
            print(f"{share} of the rows, {name}, seed {seed}, {label}: {result}", flush=True)
            protocol.write("twins", words, {"runs": runs}, FILE)
    atomic.write_bytes(FILE.with_suffix(".md"), table(runs).encode())


def table(runs: dict[str, Any]) -> str:
    """A table for each share of the rows, the least first."""
    return "\n".join(of_share(share, runs[share]) for share in sorted(runs, key=float))


def of_share(share: str, runs: dict[str, Any]) -> str:
    """Medians over seeds of errors over tuned first order's, and of each prior's over the default's."""
    labels = [label for label in priors(_drone) if label in {*USUAL, *_labels(runs)}]
    lines, over = list[tuple[str, ...]](), {label: dict[str, float]() for label in labels}
    for name in (name for name in TWINS if name in runs):
        seeds = {seed: done for seed, done in runs[name].items() if {*USUAL} <= {*done}}
        if not seeds:
            continue
        cells, kinds = [], []
        for label in labels:
            found = [done[label] for done in seeds.values() if label in done]
            if not found:
                cells.append("-")
                continue
            over[label][name] = statistics.median(
                done[label]["ratio"] / done[DEFAULT]["ratio"] for done in seeds.values() if label in done
            )
            cells.append(f"{statistics.median(each['ratio'] for each in found):.2f}")
            if label in USUAL[1:]:
                kinds.append(", ".join(each["kind"] for each in found))
        lines.append((name, str(len(seeds)), *cells, *kinds))
    pieces = [
        f"Error at {share} of the rows over that of tuned first order with all of them, medians over seeds. "
        "Columns say what is put under the default: nothing, a twin, or the twin with the wrong sign. "
        "The last two have the model in use at the end, for each seed: `prior` is what is put under it and "
        "the rest above that.",
        protocol.markdown(("problem", "seeds", *labels, *(f"used, {label}" for label in USUAL[1:])), lines),
        *(_said(label, over[label]) for label in labels if label != DEFAULT and over[label]),
    ]
    return "\n\n".join(pieces) + "\n"


def _labels(runs: dict[str, Any]) -> set[str]:
    return {label for seeds in runs.values() for done in seeds.values() for label in done}


def _said(label: str, over: dict[str, float]) -> str:
    """A prior's errors over the default's, in a sentence."""
    worst, best = max(over, key=lambda name: over[name]), min(over, key=lambda name: over[name])
    mean = math.exp(statistics.fmean(map(math.log, over.values())))
    return (
        f"With '{label}', over the default: {statistics.median(over.values()):.2f} in the median of "
        f"{len(over)} problems, {mean:.2f} in the geometric mean, {over[best]:.2f} at best ({best}) and "
        f"{over[worst]:.2f} at worst ({worst})."
    )
