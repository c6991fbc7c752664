"""`zo.sample` on the Poisson problem: the box, its twin, and what a sampling gave."""

from __future__ import annotations

from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import zo
from benchmarks.posterior.poisson import POINTS, UNKNOWNS, Membrane, potential
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.extras import import_extra

TWIN = 16  # cells along a side
START, ABOUT = 50, 0.3  # rows, and their standard deviation about zero
FAR = 15.0  # where logarithms are cut off, 7.5 spreads of the prior out, for solves to stay accurate


class Poisson(BlackBoxFunction):
    """The published box, of 32 x 32 cells."""

    inputs = (ArraySpec("x", (UNKNOWNS,), dtype="float64"),)
    outputs = (ArraySpec("z", (POINTS**2,), dtype="float64"),)

    def __init__(self) -> None:
        super().__init__(failures="keep")
        self._membrane = Membrane()

    def evaluate_rows(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacements."""
        return self._membrane(x.clip(-FAR, FAR))


def measured(seed: int, rows: int, twin: bool, progress: Any = None) -> dict[str, Any]:
    """One sampling: its effective samples, means, spreads and costs."""
    arviz = import_extra("benchmarks posterior", "arviz", "sample")
    coarse = Membrane(TWIN)

    def below(x: Tensor) -> Tensor:
        return coarse.torch(x.clamp(-FAR, FAR))

    begun = monotonic()
    start = ABOUT * torch.randn(START, UNKNOWNS, generator=torch.Generator().manual_seed(seed)).double()
    data = zo.sample(
        potential, Poisson(), start, rows=rows, seed=seed, twin=below if twin else None, progress=progress
    )
    effective = arviz.ess(data)["x"].values
    draws = data.posterior["x"].values.reshape(-1, UNKNOWNS)
    per = 1000 / data.attrs["rows"]
    return {
        "seed": seed,
        "twin": twin,
        **{name: float(value) for name, value in data.attrs.items() if isinstance(value, (int, float))},
        "acceptance": float(data.sample_stats["accepted"].mean()),
        "r_hat_worst": float(arviz.rhat(data)["x"].max()),
        "diverging": int(data.sample_stats["diverging"].sum()),
        "ess_min": float(effective.min()),
        "ess_median": float(np.median(effective)),
        "ess_min_per_1000": float(effective.min() * per),
        "ess_median_per_1000": float(np.median(effective) * per),
        "mean": draws.mean(0).round(4).tolist(),
        "sd": draws.std(0).round(4).tolist(),
        "mcse": (draws.std(0) / np.sqrt(effective)).round(4).tolist(),
        "seconds": round(monotonic() - begun),
    }
