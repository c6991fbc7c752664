"""A network holds a hydrogen burner at a wanted temperature near blow-out, trained through Cantera.

The burner is a stirred reactor of one cubic centimetre. The network sees its temperature, the flow and what
is wanted, and sets the fuel; it does not see how warm the air is and how much heat is lost. The flow changes
on the way. With too little fuel the flame goes out, and no fuel lights it again.
"""

from dataclasses import dataclass

import cantera
import numpy as np
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks.configuration import Count, NotNegative, Positive, ZerothOrder
from zo.estimators import Key

MECHANISM, FUEL, AIR = "h2o2.yaml", "H2", "O2:1, N2:3.76"
SPECIES = ("H2", "H", "O", "O2", "OH", "H2O", "HO2", "H2O2")  # the rest is nitrogen
SPREAD = np.array((0.1, 3e-3, 1e-4, 1e-3, 3e-2, 1e-3, 3e-2, 3e-5, 5e-6))  # of the state among runs
SECONDS = 1e-4  # of a call; gas stays in the reactor for as long
LEAST, MOST = 0.2, 1.0  # equivalence ratios that the network can set
OUT = 1.0  # 1000 K, below which the flame is out


class Burner(BlackBoxFunction):
    """A stirred reactor for 0.1 ms: its state and the fuel in, its state out."""

    inputs = (
        ArraySpec("state", (1 + len(SPECIES),), scale=SPREAD),  # 1000 K, mass fractions
        ArraySpec("fuel", (), scale=0.1),  # equivalence ratio
        ArraySpec("flow", (), differentiable=False),  # g/s
        ArraySpec("around", (2,), differentiable=False),  # K of the air, W/K that are lost
    )
    outputs = (ArraySpec("state", (1 + len(SPECIES),), scale=SPREAD),)

    def __init__(self, failures="keep"):
        super().__init__(failures=failures)
        self.gas, self.air = cantera.Solution(MECHANISM), cantera.Solution(MECHANISM)
        self.air.TP = self.gas.TP = 300.0, cantera.one_atm
        air, outside = (
            cantera.Reservoir(gas, clone=False) for gas in (self.air, cantera.Solution(MECHANISM))
        )
        self.reactor = cantera.IdealGasReactor(self.gas, volume=1e-6, clone=False)
        self.valve = cantera.MassFlowController(air, self.reactor)
        self.outlet = cantera.PressureController(self.reactor, outside, primary=self.valve, K=1e-6)
        self.wall = cantera.Wall(self.reactor, outside, A=1.0)
        self.places = [self.gas.species_index(name) for name in (*SPECIES, "N2")]
        self.feed, self.network = air, cantera.ReactorNet([self.reactor])

    def evaluate(self, state, fuel, flow, around):
        self.air.TP = around[0], cantera.one_atm
        self.air.set_equivalence_ratio(max(float(fuel), 0.0), FUEL, AIR)
        self.air.TP = around[0], cantera.one_atm
        self.feed.syncState()
        fractions = np.zeros(self.gas.n_species)
        fractions[self.places] = *state[1:], 1 - state[1:].sum()
        self.gas.TPY = 1000 * state[0], cantera.one_atm, fractions
        self.reactor.syncState()
        self.valve.mass_flow_rate, self.wall.heat_transfer_coeff = flow / 1000, around[1]
        self.network.initial_time = 0.0
        self.network.reinitialize()
        self.network.advance(SECONDS)
        return np.array([self.reactor.T / 1000, *self.reactor.Y[self.places[:-1]]])

    def burnt(self, fuel):
        """The state of a mixture that has burnt, with which a run begins."""
        self.gas.TP = 300.0, cantera.one_atm
        self.gas.set_equivalence_ratio(fuel, FUEL, AIR)
        self.gas.equilibrate("HP")
        return [self.gas.T / 1000, *self.gas.Y[self.places[:-1]]]

    def __reduce__(self):
        return Burner, (self.failures,)


class BurnerControl(tasks.Problem):
    """A network holds a hydrogen burner near blow-out at a wanted temperature, by its fuel."""

    units = {"off the wanted temperature": "K", "burners that go out": "%"}
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "no-gradient", "tangents", "row-rge", "rge")
        steps: Count = 120
        batch: Count = 8
        learning_rate: Positive = 0.01
        zeroth_order: ZerothOrder = ZerothOrder(mu=0.01, input_mu=0.01, directions=2)
        validate_every: Count = 20
        calls: Count = 12
        """Calls of the reactor in a loss, of 0.1 ms each; the flow changes after half of them."""
        fuel: Positive = 0.6
        """Equivalence ratio, between .2 and 1, with which training begins; near .35 most burners go out."""
        valve: NotNegative = 1.0
        """What it costs to move the valve: the only way of a gradient beside the box."""
        test: Count = 32
        """Burners in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=300, test=128),
        "edge": Config(fuel=0.35),
        "ci": Config(steps=2, batch=4, calls=3, validate_every=1, test=4),
    }

    def box(self):
        return Burner()

    def network(self):
        network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        with torch.no_grad():
            network[-1].bias += torch.logit(torch.tensor((self.config.fuel - LEAST) / (MOST - LEAST)))
        return network

    def data(self):
        burner = Burner()
        burnt = torch.tensor([burner.burnt(fuel) for fuel in np.linspace(0.5, 0.7, 21)]).float()

        def draw(seed, step, rows):  # first state, temperature wanted, flow before and after, what is around
            random = Key(seed, step).generator()
            first = burnt[torch.randint(len(burnt), (rows,), generator=random)]
            draws = torch.rand(rows, 5, generator=random)
            around = torch.stack((280 + 50 * draws[:, 3], 0.1 * draws[:, 4]), dim=1)
            return first, 1.4 + 0.08 * draws[:, 0], 1 + 2 * draws[:, 1:3], around

        return tasks.Data.drawn(draw, batch=self.config.batch, validation=16, test=self.config.test)

    def run(self, network, batch):
        """Temperatures in 1000 K and equivalence ratios, both (rows, calls)."""
        state, wanted, flows, around = batch
        temperatures, fuels = [], []
        for call in range(self.config.calls):
            flow = flows[:, 0] if call < self.config.calls / 2 else flows[:, 1]
            seen = torch.stack((10 * (state[:, 0] - wanted), 20 * (wanted - 1.44), flow - 2), dim=1)
            fuels.append(LEAST + (MOST - LEAST) * network(seen)[:, 0].sigmoid())
            state = self.box(state, fuels[-1], flow, around)
            temperatures.append(state[:, 0])
        return torch.stack(temperatures, dim=1), torch.stack(fuels, dim=1)

    def objective(self, network, batch):
        temperatures, fuels = self.run(network, batch)
        off = (temperatures - batch[1][:, None]) / 0.1
        moved = fuels.diff(dim=1).square().sum(dim=1)
        return (
            torch.nn.functional.huber_loss(off, 0 * off, reduction="none").mean(1) + self.config.valve * moved
        )

    def evaluate(self, network):
        with torch.no_grad():
            temperatures, fuels = self.run(network, self.data.test)
        wanted = self.data.test[1]
        off = (temperatures - wanted[:, None]).abs()[:, 2:]  # the first calls come down from the first state
        return {
            "off the wanted temperature": 1000 * off.mean().item(),
            "burners that go out": 100 * (temperatures[:, -1] < OUT).double().mean().item(),
            "temperatures": 1000 * temperatures,
            "wanted": 1000 * wanted,
            "fuels": fuels,
        }

    def pictures(self, fields):
        def burners(axes, arrays):
            for row, colour in enumerate(("C0", "C1", "C2", "C3")):
                times = 0.1 * np.arange(1, arrays["temperatures"].shape[1] + 1)
                axes.plot(times, arrays["temperatures"][row], color=colour)
                axes.axhline(float(arrays["wanted"][row]), color=colour, linewidth=0.5)

        shown = tasks.panels(fields, burners, xlabel="ms", ylabel="K", ylim=(1250, 1650))
        return {"Temperatures of four test burners, and those wanted (thin).": shown}
