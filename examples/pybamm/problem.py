"""A network charges a cell fast, within limits of voltage, temperature and plating, trained through PyBaMM.

Every two minutes the network sees the cell's voltage, temperature, charge and how warm it is outside, and
sets the current. It does not see how well the cell is cooled. Where the anode's potential falls below that of
lithium, lithium plates on it; where current is too small, charging takes too long.
"""

import os
from dataclasses import dataclass

os.environ.setdefault("PYBAMM_DISABLE_TELEMETRY", "true")  # it asks for leave on a terminal
import casadi
import numpy as np
import pybamm
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks.configuration import Count, Positive, ZerothOrder
from zo.estimators import Key

CURRENT, OUTSIDE, COOLING = (
    "Current function [A]",
    "Ambient temperature [K]",
    "Total heat transfer coefficient [W.m-2.K-1]",
)
SEEN = (
    "Voltage [V]",
    "Volume-averaged cell temperature [K]",
    "Negative electrode surface potential difference at separator interface [V]",
)
POINTS = {"x_n": 4, "x_s": 4, "x_p": 4, "r_n": 8, "r_p": 8}
SIZE = 31  # of the state: charge twice, two particles, electrolyte, temperature
SECONDS, CAPACITY = 120.0, 5.0  # of a call; A h
MOST, VOLTAGE, HOTTEST, PLATES = 10.0, 4.2, 318.0, 0.0  # A, V, K, V
FULL = 0.8  # what is wanted of the capacity


class Cell(BlackBoxFunction):
    """Two minutes of a cell (single particles with electrolyte, heated as a whole): state and current in."""

    inputs = (
        ArraySpec("state", (SIZE,), scale=0.05),  # of PyBaMM's own units
        ArraySpec("current", (), bounds=(0, MOST)),  # A, which charges
        ArraySpec("outside", (), differentiable=False),  # K
        ArraySpec("cooling", (), differentiable=False),  # W/m2/K
    )
    outputs = (
        ArraySpec("state", (SIZE,), scale=0.05),
        ArraySpec("seen", (3,), scale=np.array((0.1, 5.0, 0.05))),  # voltage, K, potential of the anode
    )

    def __init__(self, failures="keep"):
        super().__init__(failures=failures)
        parameters = pybamm.ParameterValues("OKane2022")
        parameters.update({name: "[input]" for name in (CURRENT, OUTSIDE, COOLING)})
        model = pybamm.lithium_ion.SPMe({"thermal": "lumped"})
        simulation = pybamm.Simulation(model, parameter_values=parameters, var_pts=POINTS)
        usual = {CURRENT: 0.0, OUTSIDE: 298.15, COOLING: 10.0}
        self.firsts = {}
        for charge in (0.05, 0.2):  # the state is linear in it
            simulation.build(initial_soc=charge, inputs=usual)
            made = simulation.built_model.export_casadi_objects(SEEN, input_parameter_order=list(usual))
            first = casadi.Function("first", [made["inputs"]], [made["x0"]])
            self.firsts[charge] = np.array(first(list(usual.values())), float).ravel()
        x, p, t = made["x"], made["inputs"], made["t"]
        system = {"x": x, "p": p, "t": t, "ode": made["rhs"]}
        settings = {"reltol": 1e-8, "abstol": 1e-8}
        self.advance = casadi.integrator("advance", "cvodes", system, 0.0, SECONDS, settings)
        self.look = casadi.Function("look", [x, p], [casadi.vertcat(*made["variables"].values())])
        self.look_back = self.look.reverse(1)
        self.back = self.advance.factory("back", ["x0", "p", "adj:xf"], ["adj:x0", "adj:p"])

    def evaluate(self, state, current, outside, cooling):
        settings = [-float(current), float(outside), float(cooling)]
        after = self.advance(x0=np.asarray(state, float), p=settings)["xf"]
        seen = np.array(self.look(after, settings)).ravel()
        if not 2.0 < seen[0] < 6.0:
            raise ValueError(f"{seen[0]:.3g} V: a particle is full or empty")
        return np.array(after).ravel(), seen

    def __reduce__(self):
        return Cell, (self.failures,)


class _Adjoint(torch.autograd.Function):
    """The cell's values, and backwards CasADi's adjoint of its integrator."""

    @staticmethod
    def forward(ctx, cell, state, current, outside, cooling):
        settings = torch.stack((-current, outside, cooling), dim=1).double().cpu().numpy()
        rows = [
            (np.asarray(x, float), p) for x, p in zip(state.double().cpu().numpy(), settings, strict=True)
        ]
        after = [np.array(cell.advance(x0=x, p=p)["xf"]).ravel() for x, p in rows]
        ctx.cell, ctx.rows, ctx.after = cell, rows, after
        seen = [np.array(cell.look(x, p)).ravel() for x, (_, p) in zip(after, rows, strict=True)]
        return state.new_tensor(np.array(after)), state.new_tensor(np.array(seen))

    @staticmethod
    def backward(ctx, *arrived):
        cell, gradients = ctx.cell, []
        for (x, p), after, of_state, of_seen in zip(
            ctx.rows, ctx.after, *(a.double().numpy() for a in arrived), strict=True
        ):
            through, directly = cell.look_back(after, p, np.zeros(3), of_seen)
            products = cell.back(x0=x, p=p, adj_xf=of_state + np.array(through).ravel())
            gradients.append(
                (np.array(products["adj_x0"]).ravel(), -float(products["adj_p"][0] + directly[0]))
            )
        states, currents = zip(*gradients, strict=True)
        return None, arrived[0].new_tensor(np.array(states)), arrived[0].new_tensor(currents), None, None


class FastCharging(tasks.Problem):
    """A network charges a cell in half an hour, within limits of voltage, temperature and plating."""

    units = {"loss": "", "charge": "%", "cells beyond a limit": "%"}

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "no-gradient", "tangents", "row-rge", "rge", "first-order")
        steps: Count = 60
        batch: Count = 4
        learning_rate: Positive = 0.02
        zeroth_order: ZerothOrder = ZerothOrder(mu=0.01, input_mu=0.01, directions=2)
        validate_every: Count = 20
        calls: Count = 15
        """Calls of the cell in a loss, of two minutes each."""
        test: Count = 32
        """Cells in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=120, test=64),
        "ci": Config(steps=2, batch=4, calls=3, validate_every=1, test=4),
    }

    def box(self):
        self.cell = Cell()
        return self.cell

    def network(self):  # it begins at half of the largest current
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def data(self):
        _ = self.box
        firsts = self.cell.firsts.items()
        (least, one), (most, other) = ((charge, torch.tensor(state)) for charge, state in firsts)

        def draw(seed, step, rows):  # first state and charge, K outside, cooling
            random = Key(seed, step).generator()
            draws = torch.rand(rows, 3, generator=random)
            charge, outside = least + (most - least) * draws[:, 2], 283 + 20 * draws[:, 0]
            state = (one + draws[:, 2:] * (other - one)).float()
            state[:, -1] = outside / 298.15  # of the cell, which has stood there
            return state, charge, outside, 5 + 15 * draws[:, 1]

        return tasks.Data.drawn(draw, batch=self.config.batch, validation=16, test=self.config.test)

    def charged(self, network, batch):
        """Charges and currents, (rows, calls), and what is seen, (rows, calls, 3)."""
        state, charge, outside, cooling = batch
        volts, kelvin = torch.full_like(outside, 3.4), outside
        calls = []
        for _ in range(self.config.calls):
            measured = torch.stack(
                (4 * (volts - 3.8), (kelvin - 303) / 10, 3 * (charge - 0.5), (outside - 293) / 10), 1
            )
            current = MOST * network(measured)[:, 0].sigmoid()
            state, seen = self.box(state, current, outside, cooling)
            charge = charge + current * SECONDS / 3600 / CAPACITY
            volts, kelvin = seen[:, 0], seen[:, 1]
            calls.append((charge, current, seen))
        return [torch.stack(series, dim=1) for series in zip(*calls, strict=True)]

    def beyond(self, seen):
        """By how much each limit is exceeded, in units that hurt: (rows, calls, 3)."""
        volts, kelvin, anode = seen.unbind(dim=2)
        return torch.stack(
            ((volts - VOLTAGE) / 0.05, (kelvin - HOTTEST) / 5, (PLATES - anode) / 0.01), 2
        ).relu()

    def objective(self, network, batch):
        charge, _, seen = self.charged(network, batch)
        return 2 * (FULL - charge).relu().mean(dim=1) + self.beyond(seen).sum(dim=2).mean(dim=1)

    def evaluate(self, network):
        with torch.no_grad():
            charge, current, seen = self.charged(network, self.data.test)
            loss = self.objective(network, self.data.test)
        return {
            "loss": tasks.RowMean(loss),
            "charge": 100 * charge[:, -1].mean().item(),
            "cells beyond a limit": 100 * (~(self.beyond(seen).amax(dim=(1, 2)) <= 0)).double().mean().item(),
            "current": current[:6],
            "seen": seen[:6],
        }

    def reference(self, state, current, outside, cooling):
        """The same integrator with CasADi's adjoint of it."""
        return _Adjoint.apply(self.cell, state, current, outside, cooling)

    def pictures(self, fields):
        def currents(axes, arrays):
            minutes = 2 * np.arange(arrays["current"].shape[1] + 1)
            for place, row in enumerate(arrays["current"]):
                axes.stairs(row, minutes, color=f"C{place}", baseline=None)

        def anodes(axes, arrays):
            minutes = 2 * np.arange(1, arrays["current"].shape[1] + 1)
            axes.plot(minutes, 1000 * arrays["seen"][..., 2].T)
            axes.axhline(0, color="0.5", linewidth=0.8)

        named = {"xlabel": "minutes"}
        return {
            "Potential of the anode of six test cells: below the grey line lithium plates.": tasks.panels(
                fields, anodes, ylabel="mV", ylim=(-60, 120), **named
            ),
            "Currents of six test cells.": tasks.panels(
                fields, currents, ylabel="A", ylim=(0, MOST), **named
            ),
        }
