"""The wake's pressure solve against other direct ones: time per row by grid and rows, answers compared.

    python -m benchmarks.wake_pressure [--device cuda] [--rows 4096] [--rounds 5] [--widths 32 64 128]

Contenders, all float32 but the sparse one: the solver's own (two small eigenbases, cut links by Woodbury);
the same with fast Fourier transforms in place of the eigenbases' matrix products; one product with the
dense inverse; two triangular solves with the dense Cholesky factor; SciPy's sparse LU (float64, CPU alone).
Dense ones stop at `--largest-dense` cells across: at 128 their table takes 4 GiB. All run in turn in one
process; a contender whose answer differs by more than rounding stops the run. Writes
`benchmarks/results/wake_pressure_DEVICE.json` and `.png`. `--size ci` runs 16 x 32 with few rows and writes
nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter, process_time
from typing import Any

import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from benchmarks.protocol import RESULTS, spreads, write
from simulators.wake_flow.geometry import Channel
from simulators.wake_flow.pressure import PressureSolver, Tables, laplace_matrix
from tasks.report.pictures import figure, save

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
EPSILON = 1.2e-7  # of float32; the operator's condition grows with its cells, and so does what it leaves
Solve = Callable[[Tensor], Tensor]  # (rows, height, width) -> the same
OWN, FOURIER, INVERSE, TRIANGULAR, SPARSE = "own", "Fourier", "dense inverse", "dense Cholesky", "sparse LU"
# Okabe and Ito (2008), and a second sign beside the colour, as in tasks.report.pictures
LOOK = {
    OWN: ("#0072b2", "o"),
    FOURIER: ("#d55e00", "s"),
    INVERSE: ("#009e73", "^"),
    TRIANGULAR: ("#cc79a7", "v"),
    SPARSE: ("#000000", "x"),
}


def main() -> None:
    """Measure, print, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("ci", "full"), default="full")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rows", type=int, default=1024, help="the most rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest-dense", type=int, default=64, help="cells across, for dense tables")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a GPU that torch can use, got none. Leave the option out.")
    if asked.size == "ci":
        asked.widths, asked.rows, asked.rounds = [16], 4, 1
    load = os.getloadavg()[0]
    if asked.device == "cpu":
        torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for width in asked.widths:
        table += compared(width, asked.device, asked.rows, asked.rounds, asked.largest_dense)
    if asked.size == "ci":
        return
    device = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu, one thread"
    name = f"wake_pressure_{asked.device}"
    command = shlex.join(["python", "-m", "benchmarks.wake_pressure", *sys.argv[1:]])
    results = {
        "command": command,
        "device": device,
        "load when it began": load,
        "rounds": asked.rounds,
        "table": table,
    }
    write(name, results)
    print(f"written to {picture(table, f'Pressure solve, {device}', name)}")


def compared(width: int, device: str, most: int, rounds: int, largest: int) -> list[dict[str, Any]]:
    """Rows of the table for one grid."""
    channel = Channel(width)
    contenders = solvers(channel, torch.device(device), dense=width <= largest)
    active = torch.from_numpy(channel.masks.active).to(device, torch.float32)
    table = []
    for rows in (rows for rows in ROWS if rows <= most):
        noise = torch.randn(rows, channel.height, width, generator=torch.Generator().manual_seed(rows))
        right = noise.to(device) * active
        expected = contenders[OWN](right) * active
        differences = {}
        for name, solve in contenders.items():
            different = ((solve(right) * active - expected).abs().max() / expected.abs().max()).item()
            if not different < max(1e-3, EPSILON * 2 * width**2):
                raise ArithmeticError(
                    f"{name}, width {width}: expected the same pressure, got {different:.1e}."
                )
            differences[name] = different
        runs = {name: partial(_finished, solve, right) for name, solve in contenders.items()}
        # of the CPU its own time, which leaves out what others take of a shared core
        found = spreads(runs, rounds, process_time if device == "cpu" else perf_counter)
        seconds = {name: spread.median for name, spread in found.items()}
        row: dict[str, Any] = {"width": width, "rows": rows}
        row["microseconds per row"] = {name: 1e6 * took / rows for name, took in seconds.items()}
        row["difference to own"] = differences
        print(f"{width:4d} {rows:5d} rows: ", end="")
        print(", ".join(f"{k} {v:.4g}" for k, v in row["microseconds per row"].items()), flush=True)
        table.append(row)
    return table


def solvers(channel: Channel, device: torch.device, *, dense: bool) -> dict[str, Solve]:
    """Every contender, built for one grid."""
    own = PressureSolver(channel)
    tables = own.tables(torch.float32, device)
    found: dict[str, Solve] = {OWN: own, FOURIER: partial(fourier, tables, channel)}
    if device.type == "cpu":
        found[SPARSE] = partial(_sparse, splu(laplace_matrix(channel).tocsc()).solve)
    if dense:
        # Positive definite but for the sign; inside obstacles rows are the identity's, with the other one.
        matrix = -torch.from_numpy(laplace_matrix(channel).toarray())
        solid = torch.from_numpy(channel.masks.active.ravel() == 0)
        matrix[solid] *= -1
        factor = torch.linalg.cholesky(matrix.to(device))
        inverse = torch.cholesky_inverse(factor).float()
        found[INVERSE] = partial(_product, inverse)
        found[TRIANGULAR] = partial(_triangular, factor.float())
    return found


def fourier(tables: Tables, channel: Channel, right: Tensor) -> Tensor:
    """The solver's own way, with fast transforms for the empty channel.

    Across, closed at both ends, the eigenvectors are those of the cosine transform, along those of one whose
    far end is at zero a cell beyond the last.
    """
    waves = torch.arange(channel.width, device=right.device, dtype=right.dtype)
    long = torch.arange(channel.height, device=right.device, dtype=right.dtype) + 0.5
    values = 2 * torch.cos(math.pi * waves / channel.width) - 2
    values = values + (2 * torch.cos(math.pi * long / (channel.height + 0.5)) - 2)[:, None]
    spectral = cosine(half_open(right.transpose(1, 2)).transpose(1, 2)) * (channel.cell**2 / values)
    empty = half_open(closed(spectral).transpose(1, 2)).transpose(1, 2) * (4 / (2 * channel.height + 1))
    flat = empty.flatten(1)
    jumps = flat[:, tables.ends[0]] - flat[:, tables.ends[1]]
    return torch.addmm(flat, jumps, tables.correction, alpha=-1).view(right.shape)


def cosine(values: Tensor) -> Tensor:
    """Sums of x_j cos(pi k (j + 1/2) / n) over the last axis."""
    n = values.shape[-1]
    waves = torch.fft.rfft(torch.cat([values, values.flip(-1)], -1))[..., :n]
    turn = torch.polar(torch.full((n,), 0.5, device=values.device), _angles(n, values) * -1)
    return (waves * turn).real


def closed(spectral: Tensor) -> Tensor:
    """The inverse of `cosine`."""
    n = spectral.shape[-1]
    turn = torch.polar(torch.full((n,), 2.0, device=spectral.device), _angles(n, spectral))
    waves = torch.cat([spectral * turn, torch.zeros_like(spectral[..., :1])], -1)
    return torch.fft.irfft(waves, 2 * n)[..., :n]


def half_open(values: Tensor) -> Tensor:
    """Sums of x_j cos(pi (2 k + 1) (2 j + 1) / (2 (2 n + 1))) over the last axis.

    Its own inverse, but for a factor of 4 / (2 n + 1).
    """
    n = values.shape[-1]
    half = torch.cat([values, torch.zeros_like(values[..., :1]), -values.flip(-1)], -1)
    waves = torch.fft.rfft(torch.cat([half, half.flip(-1)], -1))[..., 1 : 2 * n : 2]
    angles = math.pi * (torch.arange(n, device=values.device, dtype=values.dtype) + 0.5) / (2 * n + 1)
    return (waves * torch.polar(torch.full_like(angles, 0.25), -angles)).real


def _angles(n: int, like: Tensor) -> Tensor:
    return math.pi * torch.arange(n, device=like.device, dtype=like.dtype) / (2 * n)


def _product(inverse: Tensor, right: Tensor) -> Tensor:
    return (right.flatten(1) @ inverse).neg().view(right.shape)


def _triangular(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right.flatten(1).T, factor).T.neg().reshape(right.shape)


def _sparse(solve: Callable[[Any], Any], right: Tensor) -> Tensor:
    found = solve(right.flatten(1).double().numpy().T)
    return torch.from_numpy(found.T.copy()).float().view(right.shape)


def _finished(solve: Solve, right: Tensor) -> None:
    with torch.no_grad():
        solve(right)
    if right.is_cuda:
        torch.cuda.synchronize()


def picture(table: Sequence[Mapping[str, Any]], title: str, name: str) -> str:
    """Write `results/NAME.png`: a panel for each grid, a line for each contender; its path."""
    widths = list(dict.fromkeys(row["width"] for row in table))
    made, axes = figure(3.2 * len(widths) + 0.8, 3.6, rows=1, columns=len(widths))
    for place, width in zip(axes.flat, widths, strict=True):
        chosen = [row for row in table if row["width"] == width]
        for contender in chosen[0]["microseconds per row"]:
            colour, mark = LOOK[contender]
            times = [row["microseconds per row"][contender] for row in chosen]
            label = contender if width == widths[0] else None
            place.plot([row["rows"] for row in chosen], times, color=colour, marker=mark, label=label)
        place.set(xscale="log", yscale="log", xlabel="rows of a call", title=f"{width} x {2 * width}")
        place.grid(which="major", color="#e5e5e5", linewidth=0.6)
    axes.flat[0].set_ylabel("microseconds per row")
    made.suptitle(title)
    made.legend(loc="outside lower center", ncols=len(LOOK), frameon=False, fontsize=9)
    return str(save(made, RESULTS / f"{name}.png"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # PhiFlow's tracing warns at every size that it reads
    main()
