"""Parts on the wake's solver: steps a second, and what learned tangents take of a step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from phi.math import Solve
from torch import Tensor

import zo
from benchmarks.gpu.parts import Place
from benchmarks.gpu.plain_phiflow import plain_step
from benchmarks.gpu.queries import clocked, wait
from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import Channel
from simulators.wake_flow.staggered import start
from tasks.applications.wake_flow.networks import Corrector, Scales, residual
from tasks.applications.wake_flow.rollout import window_loss
from zo.tangents import AutoTangent, CallPairs, Linearised, LinearMap

ROWS = {"ci": (1, 4), "small": (1, 16, 256, 1024, 4096)}
WIDTHS = {"ci": (8,), "small": (32, 64, 128, 256)}
MOST_CELLS = 2**25  # of all rows; beyond, memory is what is measured
PHIFLOW_ROWS = (1, 16, 256)
CG = Solve("CG", 1e-5, 0)


def wake_speed(place: Place) -> dict[str, Any]:
    """A row for each grid and number of rows."""
    device, table = torch.device(place.device), place.table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PhiFlow's tracing warns at every size that it reads
        for width in WIDTHS[place.size]:
            box = WakeFlow(width)
            few = [array.to(device) for array in developed(box, 16 if not place.tiny else 4)]
            for rows in ROWS[place.size]:
                if rows * 2 * width * width > MOST_CELLS:
                    continue
                velocity, reynolds = (_repeated(array, rows) for array in few)
                run = partial(box, velocity, reynolds)
                run()
                wait(device)
                host, whole = clocked(run, device, 3)
                row: dict[str, Any] = {
                    "grid": f"{width} x {2 * width}",
                    "rows": rows,
                    "steps and rows a second": rows / whole,
                    "microseconds a step and row": 1e6 * whole / rows,
                    "host, share": host / whole,
                }
                table.append(row | _plain(box.step.channel, velocity, reynolds, device, whole, run))
    return {"rows": table}


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    times = -(-rows // len(tensor))
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:rows]


def _plain(
    channel: Channel,
    velocity: Tensor,
    reynolds: Tensor,
    device: torch.device,
    ours: float,
    run: Callable[[], Tensor],
) -> dict[str, Any]:
    """PhiFlow's own step of the same rows on the same device; why not, where it does not run."""
    if len(velocity) not in PHIFLOW_ROWS:
        return {"PhiFlow, microseconds": None, "times PhiFlow": None, "difference": None}
    plain = partial(plain_step, velocity, reynolds, channel, solve=CG)
    try:
        off = float((plain() - run()).abs().max())
        _, whole = clocked(plain, device, 2)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:200]
        return {"PhiFlow, microseconds": said, "times PhiFlow": None, "difference": None}
    microseconds = 1e6 * whole / len(velocity)
    return {"PhiFlow, microseconds": microseconds, "times PhiFlow": whole / ours, "difference": off}


def developed(box: WakeFlow, rows: int) -> tuple[Tensor, Tensor]:
    """Flows of different pokes and Reynolds numbers, two steps after their start."""
    channel = box.step.channel
    velocity = torch.stack([start(channel, poke) for poke in torch.linspace(-0.5, 0.5, rows).tolist()])
    reynolds = torch.logspace(2.8, 3.8, rows)  # the finest grid bears no lower ones
    for _ in range(2):
        velocity = box(velocity, reynolds)
    return velocity, reynolds


class Timed(AutoTangent):
    """The default tangent, with the seconds that it takes to learn and to go back."""

    def __init__(self, box: WakeFlow) -> None:
        super().__init__(box)
        self.seconds = {"fit": 0.0, "VJP": 0.0}
        self.place = torch.device("cpu")

    def _clocked(self, name: str, work: Callable[[], Any]) -> Any:
        wait(self.place)
        began = time.perf_counter()
        result = work()
        wait(self.place)
        self.seconds[name] += time.perf_counter() - began
        return result

    def see(self, pairs: Any) -> None:
        """Learn from values."""
        self._clocked("fit", partial(super().see, pairs))

    def learn(self, steps: int | None = None) -> None:
        """Learn from what was seen."""
        self._clocked("fit", partial(super().learn, steps))

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model at each call, with a clock at its vector-Jacobian product."""
        known: list[Linearised] = self._clocked("VJP", partial(super().at_each, calls))
        return [
            LinearMap(at.rows, at.push, lambda v, at=at: self._clocked("VJP", partial(at.pull, v)), at.values)
            for at in known
        ]


def tangents(place: Place) -> dict[str, Any]:
    """Seconds of a step of `zo.TangentGradient`, and which part of them is fit and VJP."""
    device, table = torch.device(place.device), place.table()
    steps, unroll, rows = (2, 2, 2) if place.tiny else (25, 8, 8)
    for width in (8,) if place.tiny else (32, 64, 128):
        box = WakeFlow(width, failures="keep")
        velocity, reynolds = (array.to(device) for array in developed(box, rows))
        torch.manual_seed(0)
        layers = residual(4 if place.tiny else 32)
        network = Corrector(layers, Scales(velocity=0.3, reynolds=370.0, correction=0.04)).to(device)
        frames = [velocity]
        for _ in range(unroll):
            frames.append(box(frames[-1], reynolds))
        batch = torch.stack(frames, dim=1), reynolds
        gradient = zo.TangentGradient(network, window_loss(box, 0.3), boxes=[box], tangent=Timed(box))
        (tangent,) = gradient.tangents  # a copy
        assert isinstance(tangent, Timed)
        tangent.place = device
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
        seconds: list[float] = []
        for step in range(steps):
            if step == steps // 2:  # what is done once is done
                seconds, tangent.seconds = [], {"fit": 0.0, "VJP": 0.0}
            optimizer.zero_grad()
            wait(device)
            began = time.perf_counter()
            gradient.backward(batch)
            wait(device)
            seconds.append(time.perf_counter() - began)
            optimizer.step()
        whole = sum(seconds)
        table.append(
            {
                "grid": f"{width} x {2 * width}",
                "rows of a step": rows * unroll,
                "milliseconds of a step": 1e3 * whole / len(seconds),
                "share of the fit": tangent.seconds["fit"] / whole,
                "share of the VJP": tangent.seconds["VJP"] / whole,
                "agreement": gradient.metrics().get("agreement"),
            }
        )
    return {"rows": table}
