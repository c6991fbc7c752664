"""A network designs LC filters for specifications that it has not met, trained through ngspice.

From an edge frequency, a load and a wanted attenuation it gives five component values. The second objective
is tolerance: filters are built of parts that are off by some per cent, and those should keep the mask too.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import tasks
from blackbox import ArraySpec, Parallel
from blackbox.adapters import CommandLine
from tasks.configuration import Count, Natural, Positive, ZerothOrder
from zo.estimators import Key

GRID = torch.arange(1, 26) / 10  # of the sweep, in edge frequencies
PASS, STOP = GRID < 1.05, GRID > 1.75
RIPPLE = 1.0  # dB, up or down in the pass band
BUILT = 32  # filters that are built of a design in the test


def ladder():
    """The program ngspice on `ladder.cir`: a row is a process of some 10 ms."""
    return CommandLine(
        ["ngspice", "-b", "ladder.cir"],
        inputs=[
            ArraySpec("logs", (5,)),
            ArraySpec("edge", (), differentiable=False),  # Hz
            ArraySpec("load", (), differentiable=False),  # ohm
            ArraySpec("sweep", (2,), differentiable=False),  # Hz, first and last
        ],
        outputs=[ArraySpec("response", (len(GRID), 2))],  # Hz, dB
        input_templates={"ladder.cir": Path(__file__).with_name("ladder.cir")},
        output_files={"response": "response.dat"},
        timeout=20,
        failures="keep",
    )


class FilterDesign(tasks.Problem):
    """A network designs low-pass filters to specification; ngspice says what the filters do."""

    units = {"built filters that miss the mask": "%", "designs that miss it": "%"}
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "rge", "first-order")
        steps: Count = 100
        batch: Count = 4
        learning_rate: Positive = 0.03
        zeroth_order: ZerothOrder = ZerothOrder(directions=2)
        draws: Natural = 4
        """Filters built of imperfect parts for each design of a step; 0 trains on the nominal one alone."""
        tolerance: Positive = 0.05
        """Standard deviation of a part's value, relative."""
        test: Count = 16
        """Specifications in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=300, batch=8, test=64),
        "nominal": Config(steps=300, batch=40, draws=0, test=64),  # the rows of large, without tolerance
        "ci": Config(steps=4, batch=2, draws=1, test=2),
    }

    def box(self):
        return Parallel(ladder(), lambda: ThreadPoolExecutor(2))

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))

    def data(self):
        def batch(seed, step, rows, draws):  # what is wanted, and by how many deviations parts will be off
            random = Key(seed, step).generator()
            return torch.rand(rows, 3, generator=random), torch.randn(rows, draws, 5, generator=random)

        rows, draws = self.config.batch, self.config.draws
        validation, test = batch(1_000_001, 0, 16, draws), batch(1_000_002, 0, self.config.test, BUILT)
        return tasks.Data(lambda seed, step: batch(seed, step, rows, draws), validation, test)

    def attenuation(self, network, wanted, off):
        """Of the nominal filter and of those built, in dB: (rows, 1 + draws, frequencies)."""
        edge, load = 1e6 * 10 ** (wanted[:, 0] - 0.5), 50 * 4 ** (wanted[:, 1] - 0.5)
        parts = 1 + self.config.tolerance * torch.nn.functional.pad(off, (0, 0, 1, 0))  # the first is nominal
        count = parts.shape[1]
        logs = network(2 * wanted - 1)[:, None] + parts.log()
        edge, load = edge.repeat_interleave(count), load.repeat_interleave(count)
        sweep = torch.stack((GRID[0] * edge, GRID[-1] * edge), dim=1)
        decibels = self.box(logs.flatten(0, 1), edge, load, sweep)[..., 1]
        return (decibels[:, :1] - decibels).unflatten(0, (-1, count))

    def excess(self, attenuation, wanted):
        """By how much the mask is missed at each frequency, in dB."""
        least = 20 + 12 * wanted[:, 2, None, None]  # dB, in the stop band
        passed, stopped = attenuation[..., PASS].abs() - RIPPLE, least - attenuation[..., STOP]
        return torch.cat((passed, stopped), dim=-1).relu()

    def objective(self, network, batch):
        wanted, off = batch
        return self.excess(self.attenuation(network, wanted, off), wanted).mean(dim=(1, 2))

    def evaluate(self, network):
        wanted, off = self.data.test
        with torch.no_grad():
            attenuation = self.attenuation(network, wanted, off)
        missed = self.excess(attenuation, wanted).amax(dim=-1) > 0
        return {
            "built filters that miss the mask": 100 * missed[:, 1:].double().mean().item(),
            "designs that miss it": 100 * missed[:, 0].double().mean().item(),
            "responses": attenuation[0],
            "least": 20 + 12 * wanted[:1, 2],
        }

    def reference(self, logs, edge, load, sweep):
        """The same circuit in PyTorch: voltage and current from the load back to the source."""
        grid, values = GRID.to(logs), logs.exp()
        voltage = torch.ones(len(logs), len(GRID), dtype=torch.complex64, device=logs.device)
        current = voltage * (1 / load)[:, None]
        for part in (4, 3, 2, 1, 0):
            if part % 2 == 0:  # a capacitor across
                current = current + 1j * grid * values[:, part, None] / 50 * voltage
            else:  # a coil in line
                voltage = voltage + (1j * grid + 1 / 40) * 50 * values[:, part, None] * current
        decibels = -20 * (voltage + 50 * current).abs().log10()
        return torch.stack((grid * edge[:, None], decibels), dim=-1)

    def pictures(self, fields):
        def responses(axes, arrays):
            axes.plot(GRID, -arrays["responses"][1:].T, color="tab:orange", linewidth=0.5)
            axes.plot(GRID, -arrays["responses"][0], color="black")
            axes.fill_between(GRID[STOP], -float(arrays["least"][0]), 5, color="0.8")
            axes.fill_between(GRID[PASS], -RIPPLE, -60, color="0.8")

        shown = tasks.panels(fields, responses, xlabel="frequency / edge", ylim=(-60, 5))
        return {"A test specification (grey: forbidden), the design and 32 built filters, in dB.": shown}
