"""A network runs the two pumps of a town's water supply through a day, trained through EPANET.

The town is EPANET's own example network 3, which comes with wntr: 92 junctions, three tanks, a pump at the
lake and one at the river. Each hour the network sees the levels of the tanks, the time and how thirsty the
day is, and sets both speeds. Energy costs what the hour's tariff says; pressures below a limit and tanks
that end a day emptier than they began it cost too.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import wntr
from wntr.epanet.toolkit import ENepanet

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks.configuration import Count, NotNegative, Positive, ZerothOrder
from zo.estimators import Key

PUMPS, TANKS, BYPASS = ("10", "335"), ("1", "2", "3"), "330"
USERS, GROUPS = 59, 5  # junctions that draw water, and their groups, each with a pattern of its day
FOOT, PSI = 0.3048, 0.3048 / 0.4333  # m, and m of water as EPANET has it
LOWEST, HIGHEST = FOOT * np.array((0.1, 6.5, 4.0)), FOOT * np.array((32.1, 40.3, 35.5))  # levels, m
TARIFF = torch.tensor([0.08] * 7 + [0.15] * 9 + [0.30] * 4 + [0.15] * 2 + [0.08] * 2)  # a kWh, by the hour
HOUR, QUARTER = 3600, 900  # s, of a call and of a step
PRESSURE = 28.0  # m, that every junction should have
# of EPANET's tables
DURATION, STEP = 0, 1
DEMAND, PATTERN, LEVEL, PRESSURE_THERE, STATUS, SPEED, POWER = 1, 2, 8, 11, 4, 5, 13


class Hour(BlackBoxFunction):
    """An hour of the network: levels of tanks and speeds of pumps in; levels, energy and pressures out."""

    inputs = (
        ArraySpec("levels", (3,)),  # m
        ArraySpec("speeds", (2,), scale=0.2),  # of the usual speed
        ArraySpec("demand", (GROUPS,), differentiable=False),  # of each group, of its mean
    )
    outputs = (
        ArraySpec("levels", (3,)),
        ArraySpec("energy", (2,), scale=100.0),  # kWh
        ArraySpec("pressures", (USERS,)),  # m of water, the lowest of the hour
    )

    def __init__(self, failures="keep"):
        super().__init__(failures=failures)
        text = (Path(wntr.__file__).parent / "library/networks/Net3.inp").read_text()
        kept, _, rest = text.partition("[CONTROLS]")  # whose place the speeds take
        text = kept + "[RULES]" + rest.partition("[RULES]")[2]
        text = text.replace("Trace Lake", "None").replace("Accuracy           \t0.001", "Accuracy 1e-8")
        self.folder = tempfile.TemporaryDirectory(prefix="epanet-")
        place = Path(self.folder.name, "net.inp")
        place.write_text(text)
        self.net = net = ENepanet(version=2.2)
        net.ENopen(*(str(place.with_suffix(end)) for end in (".inp", ".rpt", ".bin")))
        self.tanks = [net.ENgetnodeindex(name) for name in TANKS]
        self.pumps = [net.ENgetlinkindex(name) for name in PUMPS]
        town = wntr.network.WaterNetworkModel(str(place))
        self.patterns = np.array([pattern.multipliers[:24] for _, pattern in town.patterns()])
        self.users = []  # junction, its group, and what it draws on average
        for name, junction in town.junctions():
            if junction.base_demand > 0:
                group = town.pattern_name_list.index(junction.demand_timeseries_list.pattern_list()[0].name)
                node = net.ENgetnodeindex(name)
                mean = net.ENgetnodevalue(node, DEMAND) * self.patterns[group].mean()
                net.ENsetnodevalue(node, PATTERN, 0)
                self.users.append((node, group, mean))
        self.patterns = self.patterns / self.patterns.mean(axis=1, keepdims=True)
        net.ENsetlinkvalue(net.ENgetlinkindex(BYPASS), STATUS, 0)
        net.ENsettimeparam(DURATION, HOUR)
        net.ENsettimeparam(STEP, QUARTER)
        net.ENopenH()

    def evaluate(self, levels, speeds, demand):
        net = self.net
        for node, group, mean in self.users:
            net.ENsetnodevalue(node, DEMAND, float(mean * demand[group]))
        for tank, level in zip(self.tanks, np.clip(levels, LOWEST, HIGHEST), strict=True):
            net.ENsetnodevalue(tank, LEVEL, float(level / FOOT))
        for pump, speed in zip(self.pumps, speeds, strict=True):
            net.ENsetlinkvalue(pump, SPEED, float(speed))
        net.ENinitH(10)  # flows begin anew, so equal rows give equal answers
        energy, pressures, left = np.zeros(2), np.full(USERS, np.inf), HOUR
        while left > 0:  # a step ends early where a tank is full or empty
            net.ENrunH()
            power = np.array([net.ENgetlinkvalue(pump, POWER) for pump in self.pumps])
            now = [PSI * net.ENgetnodevalue(node, PRESSURE_THERE) for node, _, _ in self.users]
            lasts = net.ENnextH()
            energy, pressures = energy + power * lasts / 3600, np.minimum(pressures, now)
            left -= lasts
        net.ENrunH()
        levels = [PSI * net.ENgetnodevalue(tank, PRESSURE_THERE) for tank in self.tanks]
        return np.array(levels), energy, pressures

    def __reduce__(self):
        return Hour, (self.failures,)


class PumpSchedule(tasks.Problem):
    """A network sets the speeds of a water supply's two pumps, hour by hour, at a low cost."""

    units = {
        "cost with what is missing": "a day",
        "cost of energy": "a day",
        "hours with low pressure": "%",
        "level lost": "m",
    }
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "row-rge", "rge")
        steps: Count = 100
        batch: Count = 4
        learning_rate: Positive = 0.02
        zeroth_order: ZerothOrder = ZerothOrder(mu=0.01, input_mu=0.01, directions=2)
        validate_every: Count = 20
        speeds: Literal["network", "fixed"] = "network"
        """What is trained: a network, or two speeds that are the same in each hour of each day."""
        hours: Count = 24
        """Calls of EPANET in a loss."""
        low: NotNegative = 20.0
        """What a metre of missing pressure costs in an hour, at the junction that has least."""
        lost: NotNegative = 100.0
        """What a metre costs that a tank has lost at the end of the day."""
        test: Count = 32
        """Days in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=300, test=128),
        "ci": Config(steps=2, batch=4, hours=3, validate_every=1, test=4),
    }

    def box(self):
        self.hour = Hour()
        return self.hour

    def network(self):  # it begins with pumps that are fast enough on any day
        if self.config.speeds == "fixed":
            network = torch.nn.Linear(7, 2)
            torch.nn.init.zeros_(network.weight).requires_grad_(False)
            torch.nn.init.ones_(network.bias)
            return network
        network = torch.nn.Sequential(torch.nn.Linear(7, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        torch.nn.init.ones_(network[-1].bias)
        return network

    def data(self):
        def draw(seed, step, rows):  # levels with which a day begins, and how thirsty it is
            draws = torch.rand(rows, 4, generator=Key(seed, step).generator())
            low, high = (torch.tensor(bounds).float() for bounds in (LOWEST, HIGHEST))
            return low + (0.3 + 0.4 * draws[:, :3]) * (high - low), 0.8 + 0.4 * draws[:, 3]

        return tasks.Data.drawn(draw, batch=self.config.batch, validation=16, test=self.config.test)

    def day(self, network, batch):
        """Levels (rows, hours, 3), speeds and energy (rows, hours, 2), lowest pressures (rows, hours)."""
        levels, thirst = batch
        middle, half = (torch.tensor(HIGHEST + sign * LOWEST).float().to(levels) / 2 for sign in (1, -1))
        box = self.box
        patterns = torch.tensor(self.hour.patterns.T).float().to(levels)
        hours = []
        for hour in range(self.config.hours):
            time = torch.full_like(thirst, hour)
            angle, price = 2 * torch.pi * time / 24, TARIFF[hour % 24].expand(len(thirst)).to(levels)
            outlook = torch.stack((angle.sin(), angle.cos(), 10 * price - 1.5, 5 * (thirst - 1)), dim=1)
            speeds = 0.4 + 0.7 * network(torch.cat(((levels - middle) / half, outlook), dim=1)).sigmoid()
            levels, energy, pressures = box(levels, speeds, thirst[:, None] * patterns[hour % 24])
            hours.append((levels, speeds, energy, pressures.amin(dim=1)))
        return [torch.stack(series, dim=1) for series in zip(*hours, strict=True)]

    def costs(self, network, batch):
        """Of energy, of pressure and of levels that are missing: each (rows,)."""
        levels, _, energy, pressure = self.day(network, batch)
        price = TARIFF.repeat(1 + self.config.hours // 24)[: self.config.hours].to(levels)
        missing = (PRESSURE - pressure).relu().sum(dim=1)
        lost = (batch[0] - levels[:, -1]).relu().sum(dim=1)
        return (price * energy.sum(dim=2)).sum(dim=1), missing, lost

    def objective(self, network, batch):
        energy, missing, lost = self.costs(network, batch)
        return (energy + self.config.low * missing + self.config.lost * lost) / 1000

    def evaluate(self, network):
        with torch.no_grad():
            levels, speeds, _, pressure = self.day(network, self.data.test)
            energy, _, lost = self.costs(network, self.data.test)
            whole = self.objective(network, self.data.test)
        return {
            "cost with what is missing": 1000 * whole.mean().item(),
            "cost of energy": energy.mean().item(),
            "hours with low pressure": 100 * (pressure < PRESSURE).double().mean().item(),
            "level lost": lost.mean().item(),
            "speeds": speeds[:8],
            "levels": levels[:8],
        }

    def pictures(self, fields):
        def speeds(axes, arrays):
            hours = np.arange(arrays["speeds"].shape[1] + 1)
            for pump, colour in enumerate(("C0", "C1")):
                for day in arrays["speeds"]:
                    axes.stairs(day[:, pump], hours, color=colour, linewidth=0.8, baseline=None)
            axes.stairs(
                1.15 + TARIFF.repeat(1 + len(hours) // 24)[: len(hours) - 1],
                hours,
                color="0.5",
                baseline=None,
            )

        named = {"xlabel": "hour", "ylabel": "speed", "ylim": (0.35, 1.5)}
        shown = tasks.panels(fields, speeds, **named)
        return {"Speeds of lake pump (blue) and river pump (orange) on eight test days; grey: tariff.": shown}
