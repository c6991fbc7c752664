"""A network designs filters, whose responses ngspice computes, a program of its own.

Install the program with `apt-get install ngspice`. The twin is the ladder's transfer function in closed form.
"""

from __future__ import annotations

import math
import shutil
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters import CommandLine
from blackbox.errors import ConfigurationError
from zo.objective import Objective

INSTALL = "the program ngspice is not on the PATH; install it with: apt-get install ngspice"
FIRST, LAST, FREQUENCIES = 1e3, 1e5, 9  # Hz, of the sweep, in equal ratios
TYPICAL = (1e3, 1e-2, 1e-8, 1e-2, 1e-8)  # ohm, henry, farad, henry, farad
SPREAD = 0.7  # of the logarithms of the wanted filters' parts
LOAD = 1e3  # ohm
BATCH, TEST = 8, 24
DRAWS = 121  # first word of the keys' paths for these draws
NETLIST = """A ladder of five parts
V1 in 0 AC 1
R1 in a {parts[0]}
L1 a b {parts[1]}
C1 b 0 {parts[2]}
L2 b out {parts[3]}
C2 out 0 {parts[4]}
RL out 0 1e3
.control
set filetype=ascii
set numdgt=12
ac dec 4 1e3 1e5
wrdata response.dat db(v(out))
quit
.endc
.end
"""


def filters() -> BlackBoxFunction:
    """From five parts (ohm, henry, farad, henry, farad) to the voltage at the load, in dB at 9 frequencies.

    A row is a process of some 20 ms. The program's table has the frequency beside each value.

    Raises:
        ConfigurationError: the program is missing.
    """
    if shutil.which("ngspice") is None:
        raise ConfigurationError(f"Filter: {INSTALL}.")
    return CommandLine(
        ["ngspice", "-b", "ladder.cir"],
        inputs=[ArraySpec("parts", (5,))],
        outputs=[ArraySpec("response", (FREQUENCIES, 2))],
        input_templates={"ladder.cir": NETLIST},
        output_files={"response": "response.dat"},
        timeout=20,
        failures="keep",
    )


def ladder(parts: Tensor) -> Tensor:
    """The ladder's response in closed form, from the load back to the source: `(rows, 9, 2)`."""
    frequency = torch.logspace(math.log10(FIRST), math.log10(LAST), FREQUENCIES, dtype=torch.float64)
    resistance, coil, shunt, second_coil, second_shunt = parts.double()[:, :, None].unbind(1)
    omega = 2j * math.pi * frequency
    voltage = torch.ones(len(parts), FREQUENCIES, dtype=torch.complex128)
    current = voltage / LOAD + omega * second_shunt * voltage
    voltage = voltage + omega * second_coil * current
    current = current + omega * shunt * voltage
    voltage = voltage + (resistance + omega * coil) * current
    decibels = -20 * voltage.abs().log10()
    return torch.stack([frequency.expand_as(decibels), decibels], -1).to(parts.dtype)


class Designer(nn.Module):
    """Five parts for a wanted response: a network of the response gives their logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FREQUENCIES, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5)
        )

    def forward(self, wanted: Tensor) -> Tensor:
        """`(rows, 9)` dB to `(rows, 5)`; half a decade up and down at the output's 1."""
        logs = self.layers(wanted / 20)
        return torch.tensor(TYPICAL).to(logs) * torch.exp(logs)


def design() -> BenchmarkProblem:
    """The problem: responses of filters drawn at random are wanted."""
    box = filters()

    def wanted(rows: int, generator: torch.Generator) -> Tensor:
        parts = torch.tensor(TYPICAL) * torch.exp(SPREAD * torch.randn(rows, 5, generator=generator))
        return ladder(parts)[..., 1]

    def objective(solver: Any) -> Objective:
        def loss(network: nn.Module, batch: Tensor) -> Tensor:
            response = solver(network(batch))[..., 1]
            return ((response - batch) / 20).square().mean(1, dtype=torch.float64)

        return loss

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return Designer()

    test, validation = (wanted(TEST, torch.Generator().manual_seed(seed)) for seed in (1, 2))

    @torch.no_grad()
    def error(network: nn.Module, held_out: Tensor) -> float:
        return objective(box)(network, held_out).mean().sqrt().item() * 20

    return BenchmarkProblem(
        box=box,
        exact=ladder,
        start=start,
        objective=objective,
        batch=lambda seed, step: wanted(BATCH, zo.estimators.Key(seed, step).generator(DRAWS)),
        error=lambda network: error(network, test),
        validate=lambda network: error(network, validation),
        unit="RMS error of the response in dB",
        steps=60,
        learning_rate=5e-3,
        hard="a real program, parts of 1e3, 1e-2 and 1e-8; NOG learns nothing, since no network is behind it",
        periodic=False,
    )
