"""A network says at which density a fluid has a wanted pressure, trained through LAMMPS, which often fails.

Molecular dynamics is chaotic: its answers are noisy, though equal inputs give equal answers. And where the
fluid is too dense for the time step, atoms are lost and the run ends with an error.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import tasks
import zo
from blackbox import ArraySpec, Cached, Parallel
from blackbox.adapters import CommandLine
from tasks.configuration import Count, Positive

THINNEST, DENSEST = 0.3, 1.4  # atoms in a cube of one diameter
ALONE = {
    "OMPI_MCA_ess_singleton_isolated": "1",
    "OMPI_MCA_btl": "self",
    "OMPI_MCA_pml": "ob1",
}  # no MPI daemon
HIGHEST = 6.0  # of the wanted pressures, in Lennard-Jones units, as everywhere


def fluid():
    """The program lmp on `fluid.in`: a row is a process of some 100 ms."""
    return CommandLine(
        ["lmp", "-in", "fluid.in", "-log", "none"],
        inputs=[ArraySpec("density", ()), ArraySpec("temperature", (), differentiable=False)],
        outputs=[ArraySpec("average", (2,))],  # step, pressure
        input_templates={"fluid.in": Path(__file__).with_name("fluid.in")},
        output_files={"average": ("pressure.dat", read_average)},
        environment=ALONE,
        timeout=60,
        failures="keep",
    )


def read_average(path):
    """The last line of a file that begins with comments."""
    return [float(word) for word in path.read_text().splitlines()[-1].split()]


class Pressure(tasks.Problem):
    """A network gives the density at which a fluid of some temperature has a wanted pressure."""

    units = {"median miss": "of the mean pressure", "failed": "%"}
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "student", "differences")
        steps: Count = 30
        batch: Count = 8
        learning_rate: Positive = 0.03
        validate_every: Count = 10
        processes: Count = 2
        """lmp processes side by side."""
        test: Count = 40
        """Pairs of pressure and temperature in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=60, test=100),
        "ci": Config(steps=3, batch=4, test=8),
    }

    def box(self):  # an answer that was paid for is never asked for again, by another method or run
        self.folder.mkdir(parents=True, exist_ok=True)
        box = Parallel(fluid(), lambda: ThreadPoolExecutor(self.config.processes))
        return Cached(box, self.folder / "lammps-answers.db")

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def data(self):  # pressure and temperature that are wanted
        rows = torch.rand(1000 + 16 + self.config.test, 2, generator=torch.Generator().manual_seed(0))
        rows = rows * torch.tensor([HIGHEST, 1.0]) + torch.tensor([0.0, 1.0])
        return tasks.Data.split(rows, batch=self.config.batch, validation=16, test=self.config.test)

    def density(self, network, wanted):
        seen = torch.stack((wanted[:, 0] / 3 - 1, 2 * wanted[:, 1] - 3), dim=1)
        return THINNEST + (DENSEST - THINNEST) * network(seen)[:, 0].sigmoid()

    def objective(self, network, wanted):
        pressure = self.box(self.density(network, wanted), wanted[:, 1])[:, 1]
        return torch.nn.functional.huber_loss(pressure / 3, wanted[:, 0] / 3, reduction="none")

    def validate(self, network):  # rows that fail here are the worst, not left out
        return self.miss(network, self.data.validation)[0].mean().item()

    def miss(self, network, wanted):
        with torch.no_grad():
            density = self.density(network, wanted)
            pressure = self.box(density, wanted[:, 1])[:, 1]
        return (
            (pressure - wanted[:, 0]).abs().nan_to_num(100.0).clamp(max=100.0) / (HIGHEST / 2),
            density,
            pressure,
        )

    def evaluate(self, network):
        miss, density, pressure = self.miss(network, self.data.test)
        failed = 100 * pressure.isnan().double().mean().item()
        return {
            "median miss": miss.median().item(),
            "failed": failed,
            "density": density,
            "wanted": self.data.test,
        }

    def pictures(self, fields):
        def chosen(axes, arrays):
            return axes.scatter(arrays["wanted"][:, 0], arrays["density"], c=arrays["wanted"][:, 1], s=8)

        shown = tasks.panels(fields, chosen, colours="temperature", xlabel="wanted pressure", ylim=(0.2, 1.5))
        return {"The density that the network chooses for each test pair.": shown}


def differences(setup):
    """Both signs of a step that is wide enough for the noise; rows of which one fails are left out."""
    (box,) = setup.boxes
    stand = zo.differentiable(
        box, zo.box_gradient.RowRGE(0.05, 1, central=True), seed=setup.seed, max_dropped=1.0
    )  # however many fail
    return setup.descend(tasks.methods.AutogradGradient(setup.network, setup.objective, {box: stand}))


Pressure.methods = {
    "differences": tasks.methods.Method("Differences at the density, mu = 0.05.", differences)
}
