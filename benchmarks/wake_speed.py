"""How fast the wake's solver is, against the step that a user of PhiFlow writes first; answers compared.

    python -m benchmarks wake_speed --size ci       one round
    python -m benchmarks wake_speed --size small    the committed figures

Plain PhiFlow has its own operators and defaults, `make_incompressible` with conjugate gradients to 1e-5. All
contenders run in turn in one process, so what disturbs the machine disturbs all; what counts is the ratio of
medians, and that the velocities agree. Writes `benchmarks/results/wake_speed.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from phi import math
from phi.field import Field
from phi.math import Solve, batch
from phi.physics import advect, diffuse, fluid
from torch import Tensor

from benchmarks import protocol
from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import Channel, viscosity
from simulators.wake_flow.operators import phiflow, velocity_array, velocity_field
from simulators.wake_flow.staggered import start

WIDTH = 32
ROUNDS = {"ci": 1, "small": 15}
STEPS = 10  # after which velocities are compared


Scheme = Callable[[Field, Field, float], Field]
CG = Solve("CG", 1e-5, 0)


def mac_cormack(field: Field, velocity: Field, dt: float) -> Field:
    """`advect.mac_cormack` without its limiter, which fails on boundaries given per component."""
    ahead = advect.semi_lagrangian(field, velocity, dt)
    return ahead + 0.5 * (field - advect.semi_lagrangian(ahead, velocity, -dt))


SCHEMES: dict[str, Scheme] = {"semi-lagrangian": advect.semi_lagrangian, "mac-cormack": mac_cormack}


def plain_step(
    velocity: Tensor,
    reynolds: Tensor,
    channel: Channel,
    dt: float = 1.0,
    advection: str = "semi-lagrangian",
    solve: Solve = CG,
) -> Tensor:
    """One step of all rows, eagerly.

    Args:
        velocity: `(rows, 2, height, width)`, float32 or float64.
        reynolds: `(rows,)`.
        channel: the geometry.
        dt: time step.
        advection: a name of `SCHEMES`.
        solve: PhiFlow's description of the pressure solve.

    Returns:
        `(rows, 2, height, width)`.
    """
    with phiflow(velocity.dtype):
        now = velocity_field(velocity, channel.velocity_grid())
        nu = math.wrap(viscosity(reynolds.to(velocity)), batch("rows"))
        return velocity_array(phiflow_step(now, nu, channel, dt, SCHEMES[advection], solve))


def phiflow_step(
    now: Field, nu: math.Tensor, channel: Channel, dt: float, scheme: Scheme, solve: Solve
) -> Field:
    """The step itself, on PhiFlow's fields."""
    now = diffuse.explicit(now, nu, dt)
    now = scheme(now, now, dt)
    return fluid.make_incompressible(now, channel.geometries, solve)[0]


def one_by_one(velocity: Tensor, reynolds: Tensor, channel: Channel) -> Tensor:
    """`plain_step`, a simulation at a time."""
    steps = [plain_step(velocity[i : i + 1], reynolds[i : i + 1], channel) for i in range(len(velocity))]
    return torch.cat(steps)


def main(words: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = protocol.options("wake_speed", __doc__, ROUNDS)
    size = parser.parse_args(words).size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PhiFlow's tracing warns at every size that it reads
        found = solver(ROUNDS[size])
    protocol.write("wake_speed", words, {"solver": found}, protocol.path("wake_speed", size))


def solver(rounds: int) -> dict[str, Any]:
    """WakeFlow against plain PhiFlow on 32 x 64, one thread: times per step and row, and the difference."""
    torch.set_num_threads(1)
    box = WakeFlow(WIDTH)
    channel = box.step.channel
    velocity, reynolds = developed(box, 128)
    few = slice(0, 2)
    jitted = jit_step(channel, velocity[few], reynolds[few])
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "eager, one by one": (2, partial(one_by_one, velocity[few], reynolds[few], channel)),
        "jit_compile, one by one": (2, jitted),
        "eager, 32 rows": (32, partial(plain_step, velocity[:32], reynolds[:32], channel)),
        "WakeFlow, 32 rows": (32, partial(box, velocity[:32], reynolds[:32])),
        "WakeFlow, 128 rows": (128, partial(box, velocity, reynolds)),
    }
    times = protocol.interleaved({name: run for name, (_, run) in runs.items()}, rounds)
    per_row = {name: times[name] / rows for name, (rows, _) in runs.items()}
    best = per_row["WakeFlow, 128 rows"]
    rows = [
        {
            "run": name,
            "milliseconds per step and row": 1e3 * seconds,
            "steps and rows per second": 1 / seconds,
            "times slower than WakeFlow, 128 rows": seconds / best,
            "times slower than WakeFlow, 32 rows": seconds / per_row["WakeFlow, 32 rows"],
        }
        for name, seconds in per_row.items()
    ]
    found = difference(box, velocity[few], reynolds[few])
    for name, seconds in per_row.items():
        print(f"{name:26s} {1e3 * seconds:9.4f} ms  x {seconds / best:7.1f}")
    print(f"largest velocity difference after {STEPS} steps: {found:.1e}")
    return {"runs": rows, f"largest difference after {STEPS} steps": found}


def developed(box: WakeFlow, rows: int, steps: int = 60) -> tuple[Tensor, Tensor]:
    """Flows of different pokes and Reynolds numbers some steps after their start."""
    channel = box.step.channel
    velocity = torch.stack([start(channel, poke) for poke in torch.linspace(-0.5, 0.5, rows).tolist()])
    reynolds = torch.logspace(2, 3, rows)
    for _ in range(steps):
        velocity = box(velocity, reynolds)
    return velocity, reynolds


def jit_step(channel: Channel, velocity: Tensor, reynolds: Tensor) -> Callable[[], object]:
    """Plain PhiFlow with `math.jit_compile`, a simulation at a time."""

    def step(now: Any, nu: Any) -> Any:  # noqa: ANN401
        return phiflow_step(now, nu, channel, 1.0, advect.semi_lagrangian, CG)

    compiled = math.jit_compile(step)
    with phiflow(velocity.dtype):
        grid = channel.velocity_grid()
        fields = [velocity_field(v[None], grid) for v in velocity]
        nus = [math.wrap(viscosity(r[None]), batch("rows")) for r in reynolds]

    def run() -> object:
        with phiflow(velocity.dtype):
            return [compiled(now, nu) for now, nu in zip(fields, nus, strict=True)]

    return run


def difference(box: WakeFlow, velocity: Tensor, reynolds: Tensor) -> float:
    """Largest velocity difference to eager, one by one PhiFlow after `STEPS` steps."""
    fast = plain = velocity
    for _ in range(STEPS):
        fast, plain = box(fast, reynolds), one_by_one(plain, reynolds, box.step.channel)
    return float((fast - plain).abs().max())
