"""Problems small enough for tests, and a loop of one's own around `tasks.methods.train`."""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

import tasks
from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from tasks import Progress, Run
from tasks.configuration import Count, NotNegative, Positive, ZerothOrder
from tasks.methods import train
from tasks.workers import group
from zo.estimators import Key


class Faulty(BlackBoxError, ValueError):
    """An error as a black box may raise it."""


class Line(BlackBoxFunction):
    inputs = (ArraySpec("x", (1,)),)
    outputs = (ArraySpec("y", (1,)),)

    def evaluate_rows(self, x):
        return 2 * x - 1


class Toy(tasks.Problem):
    """Fit a line through a black box. Two methods, every file that a run has."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("sparse-cge", "no-gradient")
        steps: Count = 12
        """Optimiser steps of each method."""
        batch: Count = 8
        zeroth_order: ZerothOrder = ZerothOrder(coordinates=4)
        learning_rate: Positive = 0.05
        validate_every: Count = 3
        width: Count = 4
        """Units of the hidden layer."""
        pause: NotNegative = 0.0
        """Seconds that each step waits, so that a test can interrupt it."""
        fault: str | None = None
        """Kind of error that a step raises."""
        fault_at: int = 1
        """Which one."""
        sizes: tuple[int, ...] = (1, 2)
        """Not used; a tuple that has to survive JSON."""

    presets: ClassVar = {"demo": Config(), "small": Config(steps=20, width=8)}
    units: ClassVar = {"MAE": "m/s"}

    def box(self):
        return Line()

    def network(self):
        width = self.config.width
        return torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

    def data(self):
        config = self.config

        def train(seed, step):
            if step == config.fault_at and config.fault is not None:
                self.fail(config.fault)
            time.sleep(config.pause if step else 0.0)
            draws = Key(seed, step).generator()
            noise = 0.1 * torch.randn(config.batch, 1, generator=draws)
            if step >= config.fault_at and config.fault == "nan":
                noise = noise * float("nan")
            return torch.rand(config.batch, 1, generator=draws), noise

        x = torch.linspace(0, 1, 5)[:, None]
        return tasks.Data(train, (x, 0 * x), (x, 0 * x))

    def fail(self, fault):
        if fault == "known":
            raise Faulty("Faulty: expected a good row, got a bad one. Mend it.")
        if fault == "stop":
            raise KeyboardInterrupt  # as a second Ctrl-C does, or one outside of training
        if fault == "unknown":
            raise ZeroDivisionError("nobody saw this coming")

    def objective(self, network, batch):
        x, noise = batch
        z = network(x)  # penalised, or no-gradient would reach no weight
        return ((self.box(z) - x - noise).square() + 0.1 * z.square()).mean(dim=1)

    def evaluate(self, network):
        return {"MAE": float(self.losses(network, self.data.test).mean())}


class Shared(tasks.Problem):
    """Queries that several processes share out."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("cge",)
        steps: Count = 12
        batch: Count = 8
        learning_rate: Positive = 0.02
        validate_every: Count = 5
        zeroth_order: ZerothOrder = ZerothOrder(chunk=5)
        pause: NotNegative = 0.0
        """Seconds that each step waits, so that a test can interrupt it."""
        die_at: int | None = None
        """Step in whose queries a process is killed, the first time."""
        die_rank: int = 1
        """Which one."""

    def box(self):
        return Line()

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))

    def data(self):
        config = self.config
        self.dying = False

        def train(seed, step):
            time.sleep(config.pause if step else 0.0)
            self.dying = step == config.die_at and group.rank() == config.die_rank
            draws = Key(seed, step).generator()
            return torch.randn(8, 3, generator=draws), torch.randn(8, 1, generator=draws)

        draws = torch.Generator().manual_seed(1)
        test = torch.randn(8, 3, generator=draws), torch.randn(8, 1, generator=draws)
        return tasks.Data(train, None, test)

    def objective(self, network, batch):
        mark = self.folder / "died"
        if self.dying and not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return (self.box(network(batch[0])) - batch[1]).square().mean(dim=1)


@dataclass(frozen=True)
class Config:
    """Of `train_line`."""

    train_steps: int = 12
    learning_rate: float = 0.05


class Counter:
    def __init__(self):
        self.queries = 0

    def state_dict(self):
        return {"queries": self.queries}

    def load_state_dict(self, state):
        self.queries = state["queries"]


def train_line(run: Run, stage: str, seed: int, config: Config, progress: Progress):
    """A loop of one's own, which draws from torch's global generator."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    counter = Counter()

    def step(i):
        x = torch.rand(8, 1, generator=torch.Generator().manual_seed(1000 * seed + i))
        noise = torch.randn(8, 1) * 0.1  # from the global generator, which the loop has to restore
        optimizer.zero_grad()
        loss = (network(x) - (2 * x - 1 + noise)).square().mean()
        loss.backward()
        optimizer.step()
        counter.queries += 5
        return {"loss": loss.item(), "queries": counter.queries, "rows": 8 * counter.queries}

    def validate():
        with torch.no_grad():
            x = torch.linspace(0, 1, 5)[:, None]
            return (network(x) - (2 * x - 1)).abs().mean().item()

    outcome = train(
        run,
        stage,
        steps=config.train_steps,
        step=step,
        state={"network": network, "optimizer": optimizer, "counter": counter},
        model="network",
        validate=validate,
        validate_every=3,
        progress=progress,
    )
    return network, outcome
