"""Problems for tests: small, quick, and with a derivative that is known."""

from dataclasses import dataclass

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
        checkpoint_every: Count = 2
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
