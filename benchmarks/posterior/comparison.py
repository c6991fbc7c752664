"""`python -m benchmarks posterior`: effective samples of the Poisson problem in a thousand rows, by sampler.

    python -m benchmarks posterior --size small                         all that is not measured yet
    python -m benchmarks posterior --size small --methods zo zo-twin    `zo.sample`, without and with its twin
    python -m benchmarks posterior --size small --methods hmc --again   measured once more

Rows are all that the box ran, those of learning and tuning included; an adjoint solve is a row. Effective
samples are ArviZ's (`ess`, bulk), the least and the median of 64 unknowns. Means are held to those of the
long chain of `python -m benchmarks posterior_reference`. Results go into
`benchmarks/results/posterior/samplers.json` as they come; `samplers.md` beside it has the table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from time import monotonic
from typing import Any

import numpy as np
import torch

from benchmarks import protocol
from benchmarks.posterior import reference, rivals, sampling
from benchmarks.posterior.poisson import UNKNOWNS
from benchmarks.posterior.rivals import CHAINS, Draws, Posterior
from tasks.folder import atomic

FILE = protocol.RESULTS / "posterior" / "samplers.json"
MIXED = 1.1  # R-hat above which effective samples are only an upper bound
BY_DIFFERENCES = {"differences": "hmc", "pymc-differences": "pymc"}
GRADIENT = 65  # rows of one by differences: where it is wanted, and a step along each unknown
WALKERS, MEMBERS = 128, 256  # of emcee, the least that it takes; of ALDI

NAMES = {
    "zo": "`zo.sample`, values alone",
    "zo-twin": "`zo.sample`, 16 x 16 twin below",
    "hmc": "HMC, exact adjoint",
    "differences": "HMC, differences",
    "pymc": "PyMC's NUTS, exact adjoint",
    "pymc-differences": "PyMC's NUTS, differences",
    "covariance": "random walk, learned covariance",
    "walk": "random walk",
    "pcn": "pCN",
    "emcee": "emcee",
    "aldi": "ALDI (biased)",
}
ROWS = {
    "walk": 100_000,
    "covariance": 200_000,
    "pcn": 100_000,
    "hmc": 60_000,
    "pymc": 0,  # goes by trajectories
    "emcee": 200_000,
    "aldi": 60_000,
}
"""Rows of each rival: enough for its effective samples to be counted, where it mixes at all."""


def drawn(method: str, rows: int, seed: int) -> Draws:
    """A rival's draws, from chains that begin where `zo.sample` does."""
    rng, posterior = np.random.default_rng(seed), Posterior()

    def start(chains: int) -> rivals.Array:
        return reference.START * rng.normal(size=(chains, UNKNOWNS))

    kind = {"walk": "plain"}.get(method, method)
    of_method: dict[str, Callable[[], Draws]] = {
        "hmc": lambda: rivals.hamiltonian(posterior, start(CHAINS), rows, rng),
        "pymc": lambda: rivals.pymc(posterior, seed, start(CHAINS)),
        "emcee": lambda: rivals.ensemble(posterior, rows, seed, start(WALKERS)),
        "aldi": lambda: rivals.aldi(posterior, rows, rng, start(MEMBERS)),
    }
    if method in of_method:
        return of_method[method]()
    return rivals.random_walk(posterior, start(CHAINS), rows, rng, kind)


def measured(method: str, rows: int, seed: int) -> dict[str, Any]:
    """One sampling by a rival: its effective samples, means and costs."""
    begun = monotonic()
    draws = drawn(method, rows, seed)
    found: dict[str, Any] = {"seed": seed, "rows": draws.rows, "rows_learned": draws.tuning}
    found |= {"acceptance": float(draws.acceptance), "step_size": draws.step}
    found |= reference.summary(draws.x) | {"seconds": round(monotonic() - begun)}
    if method == "aldi":  # its members are no chains: the error of their mean is what is known
        for name in ("ess_min", "ess_median", "mcse", "sd_mcse", "r_hat_worst"):
            del found[name]
    return found


def by_differences(found: dict[str, Any]) -> dict[str, Any]:
    """The rows of a sampler by the adjoint, had it forward differences: 65 a gradient in place of two."""
    more = {name: found[name] * GRADIENT // 2 for name in ("rows", "rows_learned")}
    return {name: value for name, value in found.items() if name != "seconds"} | more


def table(results: dict[str, Any], known: dict[str, Any]) -> str:
    """A line for each method, means over its seeds; the worst seed's where means miss."""
    lines = [
        "| method | seeds | rows | of them to learn or tune | accepted | ESS in 1,000 rows, least | median "
        "| worst R-hat | means beyond 4 | worst z | means missed, in spreads: worst | median |",
        "| --- " * 12 + "|",
    ]
    for method, name in NAMES.items():
        found = [entry for key, entry in results.items() if key.startswith(f"{method}, seed")]
        if not found:
            continue

        def mean(of: Callable[[dict[str, Any]], float], found: list[dict[str, Any]] = found) -> float:
            return statistics.fmean(map(of, found))

        cells = [name, str(len(found)), f"{mean(lambda e: e['rows']):,.0f}"]
        cells += [f"{mean(lambda e: e['rows_learned']):,.0f}"]
        cells += ["-" if method == "aldi" else f"{mean(lambda e: e['acceptance']):.2f}"]
        if method == "aldi":
            cells += ["-"] * 5
        else:
            for which in ("ess_min", "ess_median"):
                unmixed = "below " if max(e["r_hat_worst"] for e in found) > MIXED else ""
                cells.append(f"{unmixed}{mean(lambda e, which=which: 1000 * e[which] / e['rows']):.3g}")
            cells.append(f"{max(e['r_hat_worst'] for e in found):.2f}")
            missed = [reference.against(np.array(e["mean"]), np.array(e["mcse"]), known) for e in found]
            cells += [f"{max(m.beyond for m in missed)} of 64", f"{max(abs(m.z).max() for m in missed):.1f}"]
        errors = [reference.against(np.array(e["mean"]), np.zeros(UNKNOWNS), known).spreads for e in found]
        cells += [f"{max(e.max() for e in errors):.2f}", f"{max(float(np.median(e)) for e in errors):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "An adjoint solve counts as a row; were it free, HMC by the adjoint would have twice as many. By "
        "differences is computed from its rows, 65 in place of two for each gradient, and was not run. "
        "Where R-hat is above 1.1, chains have not mixed: effective samples are an upper bound, for emcee "
        "little more than its number of walkers, and z says little. "
        "ALDI is biased: only its means compare. Reference: "
        f"{known['ess_min']:,.0f} effective samples of the worst unknown in {known['rows']:,} rows.",
    ]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> None:
    """Measure, and write results and table; two methods of a few rows, written nowhere, with --size ci."""
    parser = protocol.options("posterior", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=14_000, help="of zo.sample")
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--again", action="store_true", help="also what is there")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        print({name: v for name, v in measured("hmc", 1500, 0).items() if not isinstance(v, list)})
        sampling.measured(1, 600, twin=True)
        return
    for package in ("emcee", "pymc"):
        if package in asked.methods and find_spec(package) is None:
            print(
                f"posterior: expected the package {package}, found it not installed; it is left out. "
                f"pip install {package}"
            )
            asked.methods.remove(package)
    results: dict[str, Any] = {}
    if FILE.exists():
        results = json.loads(FILE.read_text(encoding="utf-8"))["results"]
    for seed in asked.seeds:
        for method in asked.methods:
            key = f"{method}, seed {seed}"
            if key in results and not asked.again:
                continue
            if method.startswith("zo"):
                results[key] = sampling.measured(seed, asked.rows, twin=method == "zo-twin", progress=tell)
            elif method in BY_DIFFERENCES:
                if f"{BY_DIFFERENCES[method]}, seed {seed}" not in results:
                    continue
                results[key] = by_differences(results[f"{BY_DIFFERENCES[method]}, seed {seed}"])
            else:
                results[key] = measured(method, ROWS[method], seed)
            told = {name: v for name, v in results[key].items() if not isinstance(v, list)}
            print(key, json.dumps(told), flush=True)
            protocol.write("posterior", words, {"results": results}, FILE)
    lines = table(results, reference.read())
    atomic.write_bytes(FILE.with_suffix(".md"), lines.encode())
    print(lines)


def tell(rows: int, effective: float) -> None:
    """Progress of `zo.sample`."""
    print(f"rows {rows}: {effective:.0f} effective samples, least of all unknowns", flush=True)
