"""A network plans how a slab of steel is heated, trained through a Fortran 77 solver in a shared library."""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction, Parallel
from blackbox.errors import ConfigurationError
from tasks.configuration import Count, Positive, ZerothOrder

SOURCE = Path(__file__).with_name("slab.f")
CELLS, PULSES = 10, 8
LIMIT = 1.45  # 1000 K: above it the surface is burnt


def library():
    """The compiled solver, compiled again where the source is newer."""
    made = SOURCE.with_suffix(".so")
    if not made.exists() or made.stat().st_mtime < SOURCE.stat().st_mtime:
        if shutil.which("gfortran") is None:
            raise ConfigurationError("gfortran: expected on the PATH, got none. apt-get install gfortran")
        new = made.with_suffix(f".{os.getpid()}.so")  # another process may be compiling too
        subprocess.run(["gfortran", "-O2", "-shared", "-fPIC", "-o", new, SOURCE], check=True)
        new.rename(made)
    return ctypes.CDLL(str(made))


class Slab(BlackBoxFunction):
    """Profile and heat fluxes in; the profile afterwards and the hottest that the surface was out."""

    inputs = (ArraySpec("profile", (CELLS,)), ArraySpec("fluxes", (PULSES,)))
    outputs = (ArraySpec("profile", (CELLS,)), ArraySpec("hottest", ()))

    def __init__(self, failures="keep"):
        super().__init__(failures=failures)
        self.solver = library()

    def evaluate(self, profile, fluxes):
        def numbers(array):
            return array.ctypes.data_as(ctypes.c_void_p)

        inputs = np.array(profile, np.float64), np.array(fluxes, np.float64)
        after, hottest = np.zeros(CELLS), np.zeros(1)
        self.solver.setup_(*map(numbers, inputs))  # ctypes lets other threads run during each of these
        self.solver.advance_()
        self.solver.result_(numbers(after), numbers(hottest))
        return after, hottest[0]

    def __reduce__(self):
        return Slab, (self.failures,)


class Heating(tasks.Problem):
    """A network plans the heating of a slab: eight heat fluxes for the profile that it comes with."""

    units = {"off the wanted temperature": "K", "above the limit": "K"}
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "rge", "first-order")
        steps: Count = 200
        learning_rate: Positive = 1e-2
        zeroth_order: ZerothOrder = ZerothOrder(directions=2)
        pool: Literal["processes", "threads", "none"] = "processes"
        """What runs the rows; threads give wrong numbers, since they share the common block."""

    presets = {
        "small": Config(),
        "large": Config(steps=600),
        "ci": Config(steps=4, batch=2),
    }

    def box(self):
        spawn = multiprocessing.get_context("spawn")
        pools = {
            "processes": lambda: ProcessPoolExecutor(2, mp_context=spawn),
            "threads": lambda: ThreadPoolExecutor(2),
        }
        return Parallel(Slab(), pools[self.config.pool], block=8) if self.config.pool in pools else Slab()

    def network(self):
        return torch.nn.Sequential(
            torch.nn.Linear(CELLS + 1, 32), torch.nn.Tanh(), torch.nn.Linear(32, PULSES), torch.nn.Softplus()
        )

    def data(self):  # profiles as slabs come, some of them hot from casting; and the temperature wanted
        draws = torch.Generator().manual_seed(0)
        level, slope, wanted = torch.rand(3, 1400, 1, generator=draws)
        profile = 0.3 + 0.5 * level + 0.4 * (slope - 0.5) * torch.linspace(-1, 1, CELLS)
        rows = (profile, 1.1 + 0.15 * wanted)
        return tasks.Data.split(rows, batch=self.config.batch, validation=100, test=200)

    def heated(self, network, batch):
        profile, wanted = batch
        return self.box(profile, network(torch.cat((profile - 0.5, 5 * (wanted - 1.2)), dim=1)))

    def objective(self, network, batch):
        after, hottest = self.heated(network, batch)
        return (after - batch[1]).square().mean(dim=1) + 10 * (hottest - LIMIT).relu().square()

    def evaluate(self, network):
        with torch.no_grad():
            after, hottest = self.heated(network, self.data.test)
        return {
            "off the wanted temperature": 1000 * (after - self.data.test[1]).abs().mean().item(),
            "above the limit": 1000 * (hottest - LIMIT).relu().mean().item(),
            "before": self.data.test[0][:4],
            "after": after[:4],
            "wanted": self.data.test[1][:4],
        }

    def reference(self, profile, fluxes):
        """The same solver in PyTorch."""
        T, hottest, dx = profile, profile[:, 0], 1 / CELLS
        for pulse in range(PULSES):
            for _ in range(48):
                inner = (T[:, :-1] - T[:, 1:]) / dx / (1 + 0.3 * (T[:, :-1] + T[:, 1:]))
                flow = torch.cat((fluxes[:, pulse, None], inner, torch.zeros_like(T[:, :1])), dim=1)
                capacity = 1 + 2 * torch.exp(-(((T - 1) / 0.1) ** 2))
                T = T + 0.25 * dx * (flow[:, :-1] - flow[:, 1:]) / capacity
                hottest = torch.maximum(hottest, T[:, 0])
        return T, hottest

    def pictures(self, fields):
        def slabs(axes, arrays):
            for slab, colour in enumerate(("C0", "C1", "C2", "C3")):
                axes.plot(1000 * arrays["before"][slab], ":", color=colour)
                axes.plot(1000 * arrays["after"][slab], color=colour)
                axes.axhline(1000 * float(arrays["wanted"][slab, 0]), color=colour, linewidth=0.5)

        shown = tasks.panels(fields, slabs, ylim=(200, 1600), xlabel="cell", ylabel="K")
        return {"Four test slabs: before (dotted), after heating, and wanted (thin).": shown}
