"""Parts of a filter are drawn from what its measured response says: a posterior through ngspice.

A band-pass of two coupled resonators was built of parts that are off by some per cent. Its gain was measured
at forty frequencies, with noise. Which five values do its parts have? The measurement is made here, by
ngspice, of a filter whose parts are known.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch

import tasks
from blackbox import ArraySpec, Parallel
from blackbox.adapters import CommandLine

NOMINAL = torch.tensor([10.0, 2.4, 10.0, 2.3, 0.25], dtype=torch.float64)  # uH, nF, uH, nF, nF
BUILT = NOMINAL * torch.tensor([1.06, 0.97, 0.95, 1.08, 1.10], dtype=torch.float64)  # what is to be found
TOLERANCE = 0.1  # of a part, relative: the standard deviation of its logarithm
NOISE = 0.2  # dB, of a measurement


def filter_by_ngspice():
    """The program ngspice on `filter.cir`: a row is a process of some 20 ms."""
    return CommandLine(
        ["ngspice", "-b", "filter.cir"],
        inputs=[ArraySpec("parts", (5,), dtype="float64")],
        outputs=[ArraySpec("response", (40, 2), dtype="float64")],  # Hz, dB
        input_templates={"filter.cir": Path(__file__).with_name("filter.cir")},
        output_files={"response": "response.dat"},
        timeout=20,
        failures="keep",
    )


class Parts(tasks.Posterior):
    """The five values of a filter's parts, of its gain that was measured at forty frequencies."""

    unknowns = ("L1 (uH)", "C1 (nF)", "L2 (uH)", "C2 (nF)", "Cc (nF)")
    bounds = (0.0, torch.inf)

    def box(self):
        return Parallel(filter_by_ngspice(), lambda: ThreadPoolExecutor(2))

    @cached_property
    def measured(self):
        noise = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        return filter_by_ngspice()(BUILT[None])[0, :, 1] + NOISE * noise

    def potential(self, x, y):
        likelihood = ((y[..., 1] - self.measured) / NOISE).square().sum(dim=1) / 2
        off = (x / NOMINAL).log()
        return likelihood + (off / TOLERANCE).square().sum(dim=1) / 2 + x.log().sum(dim=1)  # log-normal

    def start(self, rows, generator):
        draws = torch.randn(rows, 5, dtype=torch.float64, generator=generator)
        return NOMINAL * (TOLERANCE * draws).exp()
