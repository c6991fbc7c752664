"""Seconds, memory and direction of a step of training against the cells of a box's state.

    python -m benchmarks size --size ci                        two small grids, few steps; written nowhere
    python -m benchmarks size --size small                     all that is in the table
    python -m benchmarks size --size small --boxes burgers     one of the boxes

A network of up to 1,400 weights corrects a state on a grid in front of each of four calls of a box; a batch
has four rows. The boxes are Burgers' equation, an explicit scheme whose call reaches a few cells; a
projection solver, which takes a pressure of all cells out of each answer; and the same between walls that
nothing slips along. `first-order` is autograd through
the box's own derivative, `tangents` is `zo.TangentGradient` with no other setting. Each is measured in a
process of its own with one thread: the processor's seconds of the first step, the median of the ten steps
after the first thirty (three for states of more than 65,536 cells; first order, which learns nothing, begins
after one), the largest memory of the process, and of those later steps the cosine of the gradient with
autograd's on the same batch, at the same weights. Results go into `benchmarks/results/size/size.json` as they
come; what is there is not measured again. At the end a table and a figure are written beside it; the table
ends with the slopes of seconds and bytes against cells, by least squares of their logarithms.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

import zo
from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction

FOLDER = protocol.RESULTS / "size"
PATH = FOLDER / "size.json"
BATCH, CALLS, RATE = 4, 4, 1e-3
EARLY, LATER = 30, 10  # steps before those that count, and those
FEW = 3  # steps that count where a state has more than MANY cells
MANY = 2**16
TENTH = 10  # of so many early steps one is compared with autograd, too, for whoever watches
BATCHES = 16  # of states that are trained on, in turn
STEP, VISCOSITY, SUBSTEPS = 0.2, 0.1, 4  # of the boxes, in units of a cell
METHODS = ("first-order", "tangents")
PROJECTED = "projection", "walls"
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "burgers": ((2, 24, 24), (2, 64, 64), (2, 128, 128), (2, 256, 256), (2, 512, 512), (1, 1024, 1024)),
    "projection": ((2, 24, 24), (2, 64, 64), (2, 128, 128), (2, 256, 256), (2, 512, 512), (3, 64, 64, 64)),
    "walls": ((2, 24, 24), (2, 64, 64), (2, 128, 128)),
}
HEAD = """Processor seconds of a step with one thread after the first thirty, and of the first; the largest
memory of the process; the least and the median of the cosines of the tangents' gradients with autograd's in
the later steps. In brackets what is over first order's.

| box | state | first order | tangents | first step | memory, first order | memory, tangents | cosine |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


SLOPES = """
Slopes, s where a quantity grows as cells to the power s: least squares of logarithms over grids of two axes
in the lines above, all of them, and in brackets the three largest. Memory has the .4 GiB in it that a
process takes without any state.

| box | grids | first order | tangents | first step | memory, first order | memory, tangents |
| --- | --- | --- | --- | --- | --- | --- |
"""
LARGEST = 3  # grids over which the slope in brackets is taken


class Flow(BlackBoxFunction):
    """A velocity on a grid that carries itself, explicit upwind, and may be projected.

    Args:
        shape: of the state, `(channels, *space)`. A state with one channel is carried along all axes.
        projected: whether the divergence is taken out after each substep.
        walls: whether there are walls at all ends, where the velocity is zero; else the ends meet.
    """

    arrays = "torch"

    def __init__(self, shape: tuple[int, ...], projected: bool, walls: bool = False) -> None:
        super().__init__()
        self.shape, self.projected, self.walls = shape, projected, walls
        self.inputs = self.outputs = (ArraySpec("state", shape),)
        if projected:
            space = [2 * n if walls else n for n in shape[1:]]  # with its image beyond the walls
            axes = [torch.fft.fftfreq(n) for n in space[:-1]] + [torch.fft.rfftfreq(space[-1])]
            waves = torch.stack(torch.meshgrid(*axes, indexing="ij"))
            if walls:
                waves = waves * (waves.abs() < 0.5)  # of the shortest waves there is no image
            self.waves = waves / waves.square().sum(0).sqrt().clamp(min=1e-12)

    def evaluate_rows(self, state: Tensor) -> Tensor:
        """All rows."""
        with torch.no_grad():
            return self.advance(state)

    def advance(self, state: Tensor) -> Tensor:
        """What a call does, differentiable: `(rows, *shape)` to the same."""
        for _ in range(SUBSTEPS):
            change = torch.zeros_like(state)
            for axis in range(2, state.ndim):
                speed = state[:, min(axis - 2, state.shape[1] - 1)][:, None]
                before, behind = self.beside(state, axis)
                change = (
                    change - speed.clamp(min=0) * (state - before) - speed.clamp(max=0) * (behind - state)
                )
                change = change + VISCOSITY * (before - 2 * state + behind)
            state = state + STEP * change
            state = self.divergence_free(state) if self.projected else state
        return state

    def beside(self, state: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """What lies before and behind each cell; beyond a wall the same with its sign changed."""
        if not self.walls:
            return state.roll(1, axis), state.roll(-1, axis)
        last = state.shape[axis] - 1
        first, end = state.narrow(axis, 0, 1), state.narrow(axis, last, 1)
        before = torch.cat([-first, state.narrow(axis, 0, last)], axis)
        return before, torch.cat([state.narrow(axis, 1, last), -end], axis)

    def divergence_free(self, state: Tensor) -> Tensor:
        """The state less the gradient of a potential, which between walls lets nothing through them."""
        axes = tuple(range(2, state.ndim))
        whole = self.with_image(state) if self.walls else state
        spectrum = torch.fft.rfftn(whole, dim=axes)
        along = (self.waves * spectrum).sum(1, keepdim=True)
        whole = torch.fft.irfftn(spectrum - self.waves * along, s=whole.shape[2:], dim=axes)
        return whole[(..., *(slice(n) for n in self.shape[1:]))]

    def with_image(self, state: Tensor) -> Tensor:
        """Twice as many cells along each axis: with the mirror image, in which the wall is met as well."""
        for axis in range(2, state.ndim):
            image = state.flip(axis)
            through = torch.arange(self.shape[0]) == axis - 2
            sign = torch.where(through, -1.0, 1.0).reshape(-1, *[1] * (state.ndim - 2))
            state = torch.cat([state, sign * image], axis)
        return state

    def start(self, rows: int, seed: int) -> Tensor:
        """Smooth random states with waves of 12 cells and longer: `(rows, *shape)`.

        Their size is one, or a half where one channel carries along all axes, which adds up.
        """
        generator = torch.Generator().manual_seed(seed)
        state = torch.randn(rows, *self.shape, generator=generator)
        axes = tuple(range(2, state.ndim))
        state = self.with_image(state) if self.walls else state
        space = state.shape[2:]
        waves = [torch.fft.fftfreq(n) for n in space[:-1]] + [torch.fft.rfftfreq(space[-1])]
        squares = torch.stack(torch.meshgrid(*waves, indexing="ij")).square().sum(0)
        spectrum = torch.fft.rfftn(state, dim=axes) * torch.exp(-squares * 12**2)
        state = torch.fft.irfftn(spectrum, s=space, dim=axes)
        state = state[(..., *(slice(n) for n in self.shape[1:]))]
        size = 1.0 if self.shape[0] > 1 else 0.5
        state = size * state / state.square().mean(dim=(1, *axes), keepdim=True).sqrt()
        return self.divergence_free(state) if self.projected else state


class Corrector(nn.Module):
    """Two convolutions that wrap around, or see the last cells again beyond walls, added to the state."""

    def __init__(self, shape: tuple[int, ...], width: int = 32, walls: bool = False) -> None:
        super().__init__()
        self.axes, self.beyond = len(shape) - 1, "replicate" if walls else "circular"
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[self.axes]
        width = width if self.axes == 2 else 16
        self.first = convolution(shape[0], width, 3)
        self.last = convolution(width, shape[0], 3)
        nn.init.normal_(self.last.weight, std=0.01)

    def forward(self, state: Tensor) -> Tensor:
        """`(rows, *shape)` to the same."""
        hidden = torch.tanh(self.first(self._around(state)))
        return state + 0.1 * self.last(self._around(hidden))

    def _around(self, state: Tensor) -> Tensor:
        return functional.pad(state, (1, 1) * self.axes, mode=self.beyond)


@dataclass(frozen=True)
class Case:
    """What is measured in one process."""

    box: str
    shape: tuple[int, ...]
    method: str
    early: int
    later: int

    def run(self) -> dict[str, Any]:
        """Train, and say what it took."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        kind = self.box in PROJECTED, self.box == "walls"
        box, finer = Flow(self.shape, *kind), Flow(self.shape, *kind)
        network = Corrector(self.shape, walls=self.box == "walls")
        objective = _objective(box)
        exact = _objective(finer.advance)
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        gradient = zo.TangentGradient(network, objective, boxes=[box]) if self.method == "tangents" else None
        seconds, cosines, messages = [], [], []
        for step in range(self.early + self.later):
            start = box.start(BATCH, step % BATCHES)
            with torch.no_grad():  # a flow with another viscosity is to be met
                wanted, batch = start, (start,)
                for _ in range(CALLS):
                    wanted = box.advance(wanted) * 0.98
            batch = (start, wanted)
            optimizer.zero_grad()
            began = time.process_time()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if gradient is None:
                    exact(network, batch).mean().backward()
                else:
                    gradient.backward(batch)
            seconds.append(time.process_time() - began)
            messages += [f"step {step}: {str(warning.message)[:120]}" for warning in caught]
            line = f"step {step}: {seconds[-1]:.3g} s"
            if gradient is not None and (step % TENTH == 0 or step >= self.early):
                cosine = _cosine(network, exact, batch)
                line += f", cosine {cosine:.4f}"
                if step == 0 or step >= self.early:
                    cosines.append(cosine)
            print(line, file=sys.stderr, flush=True)
            optimizer.step()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "first": seconds[0],
            "later": statistics.median(seconds[self.early :]),
            "memory": memory,
            "cosines": cosines,
            "warnings": messages,
        }


def _objective(box: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        state, wanted = batch
        for _ in range(CALLS):
            state = box(network(state))
        return (state - wanted).square().flatten(1).mean(1)

    return objective


def _cosine(network: nn.Module, exact: Callable[..., Tensor], batch: Any) -> float:
    """Of `.grad` with autograd's, a row at a time, so that the memory is not this function's."""
    grads = (
        torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in network.parameters()
    )
    learned = torch.cat([grad.flatten() for grad in grads])
    total = torch.zeros_like(learned)
    for row in range(len(batch[0])):
        loss = exact(network, tuple(array[row : row + 1] for array in batch)).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        total += torch.cat([gradient.flatten() for gradient in gradients])
    return float(functional.cosine_similarity(learned.double(), total.double(), dim=0))


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("size", __doc__)
    parser.add_argument("--boxes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--cells", type=int, default=10**9, help="no larger states than this many cells")
    parser.add_argument(
        "--case", nargs="+", help="one case alone, in this process, as JSON: box method shape"
    )
    asked = parser.parse_args(words)
    if asked.case:
        box, method, *shape = asked.case
        space = tuple(map(int, shape))
        early = EARLY if method == "tangents" else 1
        later = LATER if math.prod(space[1:]) <= MANY else FEW
        print(json.dumps(Case(box, space, method, early, later).run()))
        return
    if asked.size == "ci":
        for shape in ((2, 24, 24), (2, 64, 64)):
            for method in METHODS:
                print(shape, method, Case("burgers", shape, method, 1, 2).run())
        return
    cases: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))["cases"] if PATH.exists() else {}
    for box in asked.boxes:
        for shape in SHAPES[box]:
            for method in METHODS:
                name = f"{box} {' x '.join(map(str, shape))} {method}"
                if name in cases or math.prod(shape[1:]) > asked.cells:
                    continue
                cases[name] = _apart(box, method, shape)
                print(name, cases[name], flush=True)
                protocol.write("size", ["--size", "small"], {"cases": cases}, PATH)
    write_table(cases)


def _apart(box: str, method: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """A case in a process of its own; what it said last where it ended otherwise."""
    command = [sys.executable, "-m", "benchmarks", "size", "--case", box, method, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_table(cases: dict[str, Any]) -> None:
    """Table and figure of what is measured."""
    lines, curves = [HEAD], {}
    for box, shapes in SHAPES.items():
        for shape in shapes:
            name = " x ".join(map(str, shape))
            exact, tangents = (cases.get(f"{box} {name} {method}") for method in METHODS)
            if exact is None or tangents is None or "failed" in {**exact, **tangents}:
                continue
            lines.append(_line(box, name, exact, tangents))
            if len(shape) == 3:
                curves.setdefault(box, []).append((math.prod(shape[1:]), exact, tangents))
    lines += [SLOPES, *(_slopes(box, measured) for box, measured in curves.items())]
    (FOLDER / "table.md").write_text("".join(lines), encoding="utf-8")
    draw(curves)
    print(f"written to {FOLDER}")


def _line(box: str, name: str, exact: dict[str, Any], tangents: dict[str, Any]) -> str:
    seconds = tangents["later"] / exact["later"]
    memory = tangents["memory"] / exact["memory"]
    later = tangents["cosines"][1:]
    return (
        f"| {box} | {name} | {exact['later']:.2g} s | {tangents['later']:.2g} s ({seconds:.1f}) | "
        f"{tangents['first']:.0f} s | {exact['memory'] / 2**30:.2g} GiB | "
        f"{tangents['memory'] / 2**30:.2g} GiB ({memory:.1f}) | "
        f"{min(later):.3f}, {statistics.median(later):.3f} |\n"
    )


def slope(cells: Sequence[float], values: Sequence[float]) -> float:
    """The power s of values that grow as cells^s, by least squares of logarithms."""
    return statistics.linear_regression([math.log(n) for n in cells], [math.log(x) for x in values]).slope


def _slopes(box: str, measured: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> str:
    cells = [count for count, *_ in measured]
    cellwise = []
    for place, quantity in ((0, "later"), (1, "later"), (1, "first"), (0, "memory"), (1, "memory")):
        values = [both[place][quantity] for _, *both in measured]
        all_of, largest = slope(cells, values), slope(cells[-LARGEST:], values[-LARGEST:])
        cellwise.append(f"{all_of:.2f} ({largest:.2f})")
    return f"| {box} | {len(cells)} | {' | '.join(cellwise)} |\n"


def draw(curves: dict[str, list[tuple[int, dict[str, Any], dict[str, Any]]]]) -> None:
    """Seconds and memory over cells, of grids with two axes."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for (box, measured), style in zip(curves.items(), ("-", "--", ":"), strict=False):
        cells = [count for count, *_ in measured]
        for place, method in enumerate(METHODS):
            for axis, quantity, unit in zip(axes, ("later", "memory"), (1, 2**30), strict=True):
                values = [both[place][quantity] / unit for _, *both in measured]
                axis.loglog(cells, values, style, marker="o", color=f"C{place}", label=f"{method}, {box}")
    axes[0].set(xlabel="cells", ylabel="seconds of a later step")
    axes[1].set(xlabel="cells", ylabel="largest memory, GiB")
    axes[0].legend(fontsize=8)
    figure.savefig(FOLDER / "size.png", dpi=150)
