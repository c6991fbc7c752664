"""Problems for tests: small, quick, and with a derivative that is known."""

from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks.configuration import Count, Positive

MATRIX = torch.tensor([[1.0, 0.5, 0.0], [-0.3, 0.8, 0.2], [0.1, 0.0, 1.2]], dtype=torch.float64)


class Mixed(BlackBoxFunction):
    """tanh(A z): three numbers in, three out; rows whose first number is above a limit fail."""

    inputs = (ArraySpec("z", shape=(3,)),)
    outputs = (ArraySpec("y", shape=(3,)),)

    def __init__(self, limit=float("inf")):
        super().__init__()
        self.limit = limit

    def evaluate(self, z):
        if z[0] > self.limit:
            raise ArithmeticError(f"{z[0]:.3f} is too much")
        return (torch.as_tensor(z) @ MATRIX.T.to(torch.as_tensor(z).dtype)).tanh().numpy()


class Steering(tasks.Problem):
    """A network says what to put into a box so that it answers as wanted."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "first-order", "cge")
        steps: Count = 6
        batch: Count = 5
        learning_rate: Positive = 0.05
        validate_every: Count = 2
        calls: Count = 2
        limit: float = 1e9

    def box(self):
        return Mixed(self.config.limit)

    def network(self):
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4, dtype=torch.float64),
            torch.nn.Tanh(),
            torch.nn.Linear(4, 3, dtype=torch.float64),
        )

    def data(self):
        wanted = torch.rand(40, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64) - 0.5
        return tasks.Data.split(wanted, batch=self.config.batch, validation=6, test=8)

    def objective(self, network, wanted):
        z = network(wanted)
        for _ in range(self.config.calls):
            z = self.box(z)
        return (z - wanted).square().mean(dim=1)

    def reference(self, z):
        return (z @ MATRIX.T).tanh()


class Preset(Steering):
    """It has settings that go with each other."""

    presets: ClassVar = {"short": Steering.Config(), "long": Steering.Config(steps=200, batch=3)}


class Beside(Steering):
    """There is a way from the weights to the loss beside the box, which no-gradient needs."""

    def objective(self, network, wanted):
        return super().objective(network, wanted) + 0.1 * network(wanted).square().mean(dim=1)


class TwoBoxes(Steering):
    """The same through two boxes of different names."""

    def box(self):
        return {"first": Mixed(), "second": Mixed()}

    def objective(self, network, wanted):
        return (self.box["second"](self.box["first"](network(wanted))) - wanted).square().mean(dim=1)

    def reference(self, name, z):
        assert name in ("first", "second")
        return (z @ MATRIX.T).tanh()


class Said(tasks.Progress):
    """What a run says, line by line."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class Stopped(Exception):
    """A test has seen enough."""


class Stops(tasks.Callback):
    """Ends a run before the first step of the first method that trains."""

    strict = True

    def on_start(self, run, stage, step, steps):
        raise Stopped


def cost_of(problem, runs):
    """What a run of a problem says of its cost before it trains."""
    said = Said()
    with suppress(Stopped, RuntimeError):  # the latter from an objective that is wrong
        tasks.run(problem, runs=runs, progress=said, callbacks=[Stops()])
    (first,) = [number for number, line in enumerate(said.lines) if line.startswith("Cost: ")]
    return said.lines[first:]
