"""`python -m benchmarks posterior_reference`: means and spreads of the Poisson problem by a long exact chain.

    python -m benchmarks posterior_reference --size small     written to results/posterior/reference.json

Four chains of Hamiltonian Monte Carlo by the exact adjoint, with the Monte Carlo errors of means and spreads
(ArviZ). `against` holds other chains' means to them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import protocol
from benchmarks.posterior.poisson import UNKNOWNS
from benchmarks.posterior.rivals import CHAINS, Posterior, hamiltonian
from blackbox.extras import import_extra

FILE = protocol.RESULTS / "posterior" / "reference.json"
START = 0.3  # standard deviation of a chain's first state, about zero
ROWS, PILOT = 1_300_000, 50_000  # solves and adjoint solves
FAR = 4.0  # of z, beyond which a mean is counted as missed


class Missed(NamedTuple):
    """Means beside the reference's.

    Attributes:
        z: `(size,)`, differences over the Monte Carlo errors of both.
        beyond: how many of them are beyond 4.
        spreads: `(size,)`, absolute differences in posterior standard deviations.
    """

    z: NDArray[np.float64]
    beyond: int
    spreads: NDArray[np.float64]


def against(mean: NDArray[np.float64], error: NDArray[np.float64], reference: dict[str, Any]) -> Missed:
    """Means of some chain against the reference's.

    Args:
        mean: `(size,)`.
        error: its Monte Carlo errors, `(size,)`; zero for means without.
        reference: `mean`, `sd` and `mcse` of each unknown.
    """
    known, sd, mcse = (np.asarray(reference[name]) for name in ("mean", "sd", "mcse"))
    z = (mean - known) / np.hypot(error, mcse)
    return Missed(z, int((np.abs(z) > FAR).sum()), np.abs(mean - known) / sd)


def summary(x: NDArray[np.float64]) -> dict[str, Any]:
    """Means, spreads, their Monte Carlo errors and effective samples of `(chains, draws, size)`, by ArviZ."""
    arviz = import_extra("benchmarks posterior", "arviz", "sample")
    data = arviz.convert_to_dataset(x)
    effective = arviz.ess(data)["x"].values
    return {
        "draws": int(np.prod(x.shape[:2])),
        "r_hat_worst": float(arviz.rhat(data)["x"].max()),
        "ess_min": float(effective.min()),
        "ess_median": float(np.median(effective)),
        "mean": x.mean((0, 1)).round(5).tolist(),
        "mcse": arviz.mcse(data)["x"].values.round(5).tolist(),
        "sd": x.std((0, 1)).round(5).tolist(),
        "sd_mcse": arviz.mcse(data, method="sd")["x"].values.round(5).tolist(),
    }


def read() -> dict[str, Any]:
    """The committed reference."""
    return dict(json.loads(FILE.read_text(encoding="utf-8"))["results"])


def main(words: Sequence[str]) -> None:
    """Measure it; printed alone with --size ci."""
    asked = protocol.options("posterior_reference", __doc__).parse_args(words)
    torch.set_num_threads(1)
    rows, pilot = (ROWS, PILOT) if asked.size == "small" else (1500, 600)
    rng, begun = np.random.default_rng(0), monotonic()
    start = START * rng.normal(size=(CHAINS, UNKNOWNS))
    draws = hamiltonian(Posterior(), start, rows, rng, tuning=pilot)
    found = {"method": "hmc by the adjoint", "rows": draws.rows, "rows_of_pilot": draws.tuning}
    found |= {"acceptance": float(draws.acceptance), "step": draws.step, "chains": CHAINS}
    found |= summary(draws.x) | {"seconds": round(monotonic() - begun)}
    print({name: value for name, value in found.items() if not isinstance(value, list)}, flush=True)
    if asked.size == "small":
        protocol.write("posterior_reference", words, {"results": found}, FILE)
