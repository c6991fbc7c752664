"""Programs that call a network from inside of their loop, each with what makes its derivative hard to learn.

    python -m benchmarks closed_loop --size ci       two steps of one program; written nowhere
    python -m benchmarks closed_loop --size small    the table

| program | what is hard |
| --- | --- |
| lag hidden | the action goes through a lag of ten steps, which the program keeps and does not send |
| lag sent | the same, and all state is sent |
| delay | the action acts five steps later, and nobody is told |
| preview | a reference for two steps is sent, and what comes into it is no function of what was sent |
| columns | one network for 20 alike columns of 12 levels, which exchange a little with their neighbours |

Behind a comma is what the call declares of it.

Lags and delays are of Lorenz's system of 1996 (8 cells, Runge-Kutta, dt .01), 16 calls a run; the previewed
reference is of a mass behind a PID. Batches of 8, Adam. The oracle is autograd through the same program in
PyTorch: first order is trained with it at several rates, and the table has the error on cases that were not
trained on, over that of first order at its best rate. A cosine is that of a step's gradient with the exact
one, at the weights as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted

BATCH, RATES, LOOK = 8, (3e-3, 6e-3, 1.2e-2), (2, 5, 10, 25)
SEEDS = (0,)
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Program:
    """A program, its twin and what is trained inside of it.

    Attributes:
        host: the program.
        network: makes a network of new weights.
        objective: the losses of rows through the program, `objective(network, batch)`.
        twin: the same through PyTorch.
        batch: `batch(generator, rows, held_out)`.
        steps: of a training.
    """

    host: Hosted
    network: Callable[[], nn.Module]
    objective: Callable[[nn.Module, Batch], Tensor]
    twin: Callable[[nn.Module, Batch], Tensor]
    batch: Callable[[np.random.Generator, int, bool], Batch]
    steps: int = 45


class Scaled(nn.Module):
    """A perceptron whose inputs are divided by a number, and its outputs multiplied."""

    def __init__(self, size: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, size))
        self.scale = scale

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """The network answers `(rows, size)`, and does not look at what is sent beside."""
        return self.scale * self.layers(x / self.scale)


CELLS, CALLS, DT, SPACING = 8, 16, 0.01, 300


def lorenz(x: Tensor, forcing: Tensor) -> Tensor:
    """A step of the cells."""

    def rate(x: Tensor) -> Tensor:
        return -x.roll(1, -1) * (x.roll(2, -1) - x.roll(-1, -1)) - x + 20.0 + forcing

    a = rate(x)
    b = rate(x + DT / 2 * a)
    c = rate(x + DT / 2 * b)
    return x + DT / 6 * (a + 2 * b + 2 * c + rate(x + DT * c))


def closure_law(x: Tensor) -> Tensor:
    """The law is what the network is to find."""
    return -0.2 - 1.2 * x + 0.03 * x * x.abs()


def kept_after(kept: Tensor, action: Tensor, lag: int, delay: int) -> tuple[Tensor, Tensor]:
    """The program keeps a lag, or its last actions `(..., delay, cells)`; returns what acts, and that."""
    if delay:
        return kept[..., 0, :], torch.cat([kept[..., 1:, :], action[..., None, :]], -2)
    kept = kept + (action - kept) / lag
    return kept, kept


@cache
def lorenz_truth(lag: int, delay: int) -> tuple[Tensor, Tensor]:
    """States and what is kept, of 40 runs by 300 steps under the law."""
    generator = torch.Generator().manual_seed(0)
    x = 4 + 4 * torch.randn(40, CELLS, generator=generator, dtype=torch.float64)
    kept = closure_law(x)
    kept = kept[:, None].expand(-1, delay, -1) if delay else kept
    states, memories = [], []
    for step in range(400 + SPACING):
        if step >= 400:
            states.append(x)
            memories.append(kept)
        acting, kept = kept_after(kept, closure_law(x), lag, delay)
        x = lorenz(x, acting)
    return torch.stack(states, 1), torch.stack(memories, 1)


def lorenz_program(lag: int = 10, delay: int = 0, sent: bool = False, **declared: Any) -> Program:
    """Lorenz's system, whose closure goes through a lag or a delay."""
    states, memories = lorenz_truth(lag, delay)
    spread = states.std()

    def program(case: int, host: Any) -> None:
        x, kept = states[divmod(case, SPACING)], memories[divmod(case, SPACING)]
        for _ in range(400):
            shown = {"x": x.numpy()} | ({"m": kept.numpy()} if sent else {})
            action = torch.from_numpy(np.array(host.call("closure", **shown)["a"]))
            acting, kept = kept_after(kept, action, lag, delay)
            x = lorenz(x, acting)

    sees = [ArraySpec("x", (CELLS,)), *([ArraySpec("m", (CELLS,))] if sent else [])]
    call = Call("closure", sees=sees, gives=ArraySpec("a", (CELLS,)), **declared)
    host = Hosted(program, calls=[call])

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        seen = host.run(batch[0], calls=CALLS, closure=network).closure.x
        return ((seen[:, 1:] - batch[1]) / spread).square().mean((1, 2))

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        where = batch[0] // SPACING, batch[0] % SPACING
        x, kept, total = states[where].float(), memories[where].float(), torch.zeros(len(batch[0]))
        for call in range(CALLS):
            acting, kept = kept_after(kept, network(x), lag, delay)
            x = lorenz(x, acting)
            total = total + ((x - batch[1][:, call]) / spread).square().mean(1)
        return total / CALLS

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        runs = torch.from_numpy(generator.integers(32 * held_out, 40 if held_out else 32, rows))
        times = torch.from_numpy(generator.integers(0, SPACING - CALLS - 1, rows))
        after = states[runs[:, None], times[:, None] + torch.arange(1, CALLS + 1)]
        return runs * SPACING + times, after.float()

    return Program(host, lambda: Scaled(CELLS, 64, 10.0), objective, twin, batch)


SUBSTEPS, SHORT, CASES = 10, 0.02, 3000


def pid(y: Tensor, v: Tensor, total: Tensor, before: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
    """A mass on a spring behind a PID that is given a set point, for ten short steps."""
    for _ in range(SUBSTEPS):
        error = wanted - y
        total = total + SHORT * error
        force = 6.0 * error + 2.0 * total + 0.3 * (error - before) / SHORT
        v = v + SHORT * (force - 2.0 * y - 0.8 * v - 0.5 * y**3)
        y, before = y + SHORT * v, error
    return y, v, total, before


class SetPoint(nn.Module):
    """The set point, from the state and the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, state: Tensor) -> Tensor:
        """The network answers `(rows, 6)`, beside the reference of the next step."""
        return state[:, 4:5] + self.layers(state)


def preview_program() -> Program:
    """A mass behind a PID: state and two steps of the reference are sent."""
    generator = np.random.default_rng(0)
    cases = torch.tensor(
        np.stack(
            [
                generator.uniform(0.5, 1.5, CASES),
                generator.uniform(0, 6.3, CASES),
                generator.uniform(0.5, 3.0, CASES),
                generator.normal(0, 0.5, CASES),
            ],
            1,
        )
    )

    def reference(case: Tensor, step: int) -> Tensor:
        return case[..., 0] * torch.sin(case[..., 2] * step * SUBSTEPS * SHORT + case[..., 1])

    def start(case: Tensor) -> tuple[Tensor, ...]:
        y = case[..., 3]
        return y, 0 * y, 0 * y, reference(case, 0) - y

    def shown(case: Tensor, state: tuple[Tensor, ...], step: int) -> Tensor:
        return torch.stack([*state, reference(case, step + 1), reference(case, step + 2)], -1)

    def program(number: int, host: Any) -> None:
        case = cases[number]
        state = start(case)
        for step in range(400):
            wanted = host.exchange("control", shown(case, state, step).numpy())
            state = pid(*state, torch.tensor(float(np.asarray(wanted).reshape(-1)[0]), dtype=torch.float64))

    sees, gives = ArraySpec("state", (6,)), ArraySpec("wanted", (1,))
    host = Hosted(program, calls=[Call("control", sees=sees, gives=gives)])

    def losses(seen: Tensor, wanted: Tensor) -> Tensor:  # y after each call, and what was wanted of it
        error = seen[:, 1:, 0] - seen[:, :-1, 4]
        return error.square().mean(1) + 0.01 * wanted.diff(dim=1).square().mean((1, 2))

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        run = host.run(batch[0], calls=CALLS, control=network).control
        return losses(run.state, run.wanted)

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        case = cases[batch[0]].float()
        state, seen, given = start(case), [], []
        for step in range(CALLS + 1):
            seen.append(shown(case, state, step))
            if step < CALLS:
                given.append(network(seen[-1]))
                state = pid(*state, given[-1][:, 0])
        return losses(torch.stack(seen, 1), torch.stack(given, 1))

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        low, high = (2500, CASES) if held_out else (0, 2500)
        return (torch.from_numpy(generator.integers(low, high, rows)),)

    return Program(host, SetPoint, objective, twin, batch)


COLUMNS, LEVELS, LONG = 20, 12, 0.2
HEAT = torch.zeros(COLUMNS, LEVELS, dtype=torch.float64)
HEAT[:, 0], HEAT[:, -1] = torch.sin(torch.arange(COLUMNS) * 2 * torch.pi / COLUMNS), -0.3


def mixed(heights: Tensor, mixing: Tensor) -> Tensor:
    """Columns after a step, `(..., 20, 12)`, by `(..., 20, 11)` between levels."""
    for _ in range(4):
        flux = mixing * (heights[..., 1:] - heights[..., :-1])
        none = 0 * heights[..., :1]
        flux = torch.cat([none, flux, none], -1)
        near = heights.roll(1, -2) + heights.roll(-1, -2) - 2 * heights
        heights = heights + LONG / 4 * (flux[..., 1:] - flux[..., :-1] + 0.05 * near + HEAT.to(heights))
    return heights


class Mixing(nn.Module):
    """How much each pair of levels mixes, of a column."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(LEVELS, 32), nn.SiLU(), nn.Linear(32, LEVELS - 1), nn.Softplus()
        self.layers = nn.Sequential(*layers)

    def forward(self, heights: Tensor) -> Tensor:
        """The network answers `(..., levels)`, each column by itself."""
        return self.layers(heights - heights.mean(-1, keepdim=True))


def columns_program(calls: int = 6, **declared: Any) -> Program:
    """Columns that are heated and mix."""
    generator = np.random.default_rng(0)
    walks = np.cumsum(generator.standard_normal((30, COLUMNS, LEVELS)) * 0.3, -1)
    heights = torch.tensor(generator.standard_normal((30, COLUMNS, 1)) * 0.3 + walks)
    kept = []
    for _ in range(40):
        kept.append(heights)
        steepness = heights[..., 1:] - heights[..., :-1]
        heights = mixed(heights, 0.1 + 1.2 / (1 + torch.exp(4 * steepness)))  # unstable layers mix
    states = torch.stack(kept, 1)
    spread = states.std()

    def program(case: int, host: Any) -> None:
        heights = states[divmod(case, 40)]
        for _ in range(100):
            heights = mixed(heights, torch.from_numpy(np.array(host.exchange("mixing", heights.numpy()))))

    sees, gives = ArraySpec("T", (COLUMNS, LEVELS)), ArraySpec("K", (COLUMNS, LEVELS - 1))
    host = Hosted(program, calls=[Call("mixing", sees=sees, gives=gives, **declared)])

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        seen = host.run(batch[0], calls=calls, mixing=network).mixing.T
        return ((seen[:, 1:] - batch[1]) / spread).square().mean((1, 2, 3))

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        heights, total = states[batch[0] // 40, batch[0] % 40].float(), torch.zeros(len(batch[0]))
        for call in range(calls):
            heights = mixed(heights, network(heights))
            total = total + ((heights - batch[1][:, call]) / spread).square().mean((1, 2))
        return total / calls

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        runs = torch.from_numpy(generator.integers(24 * held_out, 30 if held_out else 24, rows))
        times = torch.from_numpy(generator.integers(0, 40 - calls - 1, rows))
        after = states[runs[:, None], times[:, None] + torch.arange(1, calls + 1)]
        return runs * 40 + times, after.float()

    return Program(host, Mixing, objective, twin, batch)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "lag hidden": lorenz_program,
    "lag hidden, memory=1": lambda: lorenz_program(memory=1),
    "lag sent": lambda: lorenz_program(sent=True),
    "delay": lambda: lorenz_program(delay=5),
    "preview": preview_program,
    "columns": columns_program,
    "columns, same=0": lambda: columns_program(same=0),
}


def trained(program: Program, seed: int, rate: float, *, exact: bool, steps: int) -> dict[str, Any]:
    """What a training comes to: error, rows, cosines, steps without a gradient, warnings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = program.network()
    optimizer, generator = torch.optim.Adam(network.parameters(), rate), np.random.default_rng(seed)
    weights = list(network.parameters())
    gradient = None
    if not exact:
        gradient = zo.TangentGradient(network, program.objective, boxes=[program.host], seed=seed)
    cosines: dict[int, tuple[float, float]] = {}
    without = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for step in range(steps):
            batch = program.batch(generator, BATCH, False)
            optimizer.zero_grad()
            if gradient is None:
                program.twin(network, batch).mean().backward()
            else:
                gradient.backward(batch)
                if weights[0].grad is None:
                    without += 1
                else:
                    cosines[step] = _beside(weights, program.twin(network, batch).mean())
            optimizer.step()
    with torch.no_grad():
        error = float(program.twin(network, program.batch(np.random.default_rng(999), 64, True)).mean())
    return {
        "error": error,
        "rows": 0 if gradient is None else gradient.counts.rows,
        "without": without,
        "cosines": cosines,
        "warnings": [str(one.message) for one in caught],
    }


def _beside(weights: Sequence[Tensor], exact: Tensor) -> tuple[float, float]:
    """Cosine with the exact gradient, and the length over its."""
    true = torch.cat([part.flatten() for part in torch.autograd.grad(exact, list(weights))])
    mine = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])
    return float(mine @ true / mine.norm() / true.norm()), float(mine.norm() / true.norm())


def compared(name: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """A program at first order's best rate, by both."""
    program = PROGRAMS[name]()
    steps = steps or program.steps
    first = {rate: trained(program, seed, rate, exact=True, steps=steps)["error"] for rate in RATES}
    rate = min(first, key=first.__getitem__)
    learned = trained(program, seed, rate, exact=False, steps=steps)
    program.host.close()
    return {"rate": rate, "first": first[rate], "over": learned["error"] / first[rate], **learned}


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("closed_loop", __doc__)
    parser.add_argument(
        "--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS), help="of these alone"
    )
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        print(line("lag hidden", [compared("lag hidden", 0, 2)]))
        return
    results = {}
    print(HEAD, end="")
    for name in asked.programs:
        results[name] = [compared(name, seed) for seed in SEEDS]
        print(line(name, results[name]), flush=True)
    if len(asked.programs) == len(PROGRAMS):
        path = protocol.path("closed_loop", asked.size)
        protocol.write("closed_loop", words, {"seeds": SEEDS, "programs": results}, path)


HEAD = (
    "| program | error over first order's | steps without a gradient | cosine, length at steps "
    f"{', '.join(map(str, LOOK))} | warnings |\n| --- | --- | --- | --- | --- |\n"
)


def _said(beside: tuple[float, float] | None) -> str:
    return "-" if beside is None else f"{beside[0]:.2f}/{beside[1]:.2f}"


def line(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Of the table."""
    each = [
        ", ".join(str(part) for part in column)
        for column in zip(
            *(
                (
                    f"{run['over']:.2f}",
                    run["without"],
                    " ".join(
                        "{:.2f}/{:.2f}".format(*run["cosines"][s]) if s in run["cosines"] else "-"
                        for s in LOOK
                    ),
                    len(run["warnings"]),
                )
                for run in runs
            ),
            strict=True,
        )
    ]
    return f"| {name} | {' | '.join(each)} |"
