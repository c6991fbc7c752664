"""Problems in which a network designs what a calculation judges in one call: a lens, a batch, a truss.

What is wanted is drawn at random, so that there are as many batches as anybody wants, for no row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents.formulas import Formula, library
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import ArraySpec

DRAWN = 181  # first word of the keys' paths for these draws
JUDGED, ROWS = 1_000_003, 256  # the seed of validation and test rows, and how many there are of each


class Doublet(Formula):
    """Rays in the plane through a cemented doublet of N-BK7 and F2, from an object at infinity.

    Surface by surface, exactly (Welford 1986, Aberrations of Optical Systems, section 4.2). Three wavelengths
    (F, d, C), three angles of the field, five heights in the pupil, which lies at the first surface: 45 rays.

    `pupil` is its radius in mm, `design` three curvatures in 1/mm and the distance from the last surface to
    the image in mm, `heights` where the rays meet the image, in mm.
    """

    CROWN, FLINT = (1.52238, 1.51680, 1.51432), (1.63208, 1.62004, 1.61503)  # indices at F, d, C
    THICK = 8.0, 4.0  # mm
    FIELD = math.radians(1) * np.array([0.0, 1.5, 3.0])
    UP = np.linspace(-1, 1, 5)
    ANGLES = np.repeat(FIELD, 15)  # of each ray; then wavelengths, then heights

    inputs = ArraySpec("pupil", (), differentiable=False), ArraySpec("design", (4,))
    outputs = (ArraySpec("heights", (45,)),)

    def law(self, pupil: Any, design: Any) -> Any:
        """`(rows,)`, `(rows, 4)` to `(rows, 45)`."""
        of = library(design)
        asarray = torch.as_tensor if of is torch else np.asarray
        air = asarray(np.ones(45))
        crown, flint = (asarray(np.tile(np.repeat(n, 5), 3)) for n in (self.CROWN, self.FLINT))
        y = pupil[:, None] * asarray(np.tile(self.UP, 9))
        sine, cosine = asarray(np.sin(self.ANGLES)) + 0 * y, asarray(np.cos(self.ANGLES)) + 0 * y
        surfaces = ((air, crown, self.THICK[0]), (crown, flint, self.THICK[1]), (flint, air, design[:, 3:]))
        for number, (before, after, behind) in enumerate(surfaces):
            c = design[:, number : number + 1]
            along = cosine - c * y * sine
            incident = of.sqrt(along**2 - c * c * y**2)
            way = c * y**2 / (along + incident)
            y, z = y + way * sine, way * cosine
            bent = of.sqrt(after**2 - before**2 * (1 - incident**2)) - before * incident
            sine, cosine = (
                (before * sine - c * bent * y) / after,
                (before * cosine - c * bent * z + bent) / after,
            )
            y = y + (behind - z) * sine / cosine
        return y


class SemiBatch(Formula):
    """A + B -> C -> D in a tank to which B is fed (Srinivasan et al. 2003, Comput. Chem. Eng. 27, example 3).

    Rates are 4 exp(-6e3 / RT) l / (mol h) and 800 exp(-2e4 / RT) 1/h, heats of reaction 30 and 10 kJ/mol:
    half an hour in 20 steps by the midpoint rule, from a volume of 1 l, with 20 mol/l of B in the feed.

    `charge` are the moles of A and B at the start, `policy` five temperatures in K and five feeds in l/h,
    each held for a fifth of the time; `amounts` the moles of A, B, C and D at the end, `heat` what must be
    cooled away in each step, in kJ/h.
    """

    STEPS, HOURS = 20, 0.5
    inputs = ArraySpec("charge", (2,), differentiable=False), ArraySpec("policy", (10,))
    outputs = ArraySpec("amounts", (4,)), ArraySpec("heat", (20,))

    def law(self, charge: Any, policy: Any) -> Any:
        """`(rows, 2)`, `(rows, 10)` to `(rows, 4)`, `(rows, 20)`."""
        of, dt, heat = library(policy), self.HOURS / self.STEPS, []
        state = of.stack([charge[:, 0], charge[:, 1], *3 * [0 * charge[:, 0]]], 1)  # and the volume above 1 l
        kelvin = 8.31 * policy[:, :5]
        first, second = 4 * of.exp(-6e3 / kelvin), 800 * of.exp(-2e4 / kelvin)
        for step in range(self.STEPS):
            part = step * 5 // self.STEPS
            k1, k2, feed = first[:, part], second[:, part], policy[:, 5 + part]

            def rate(now: Any, k1: Any = k1, k2: Any = k2, feed: Any = feed) -> tuple[Any, Any, Any]:
                made = k1 * now[:, 0] * now[:, 1] / (1 + now[:, 4])
                lost = k2 * now[:, 2]
                return of.stack([-made, 20 * feed - made, made - lost, lost, feed], 1), made, lost

            now = rate(state)
            heat.append(30 * now[1] + 10 * now[2])
            state = state + dt * rate(state + dt / 2 * now[0])[0]
        return state[:, :4], of.stack(heat, 1)


class TenBars(Formula):
    """The truss of ten bars (Venkayya 1971; Haftka and Gurdal 1992): linear, of aluminium, bays of 9.144 m.

    `loads` are the forces in kN that pull both lower free joints down, `areas` those of the bars in cm^2;
    `stress` is in MPa, `shift` of the four free joints, along and across, in mm.
    """

    BAY, STIFF, DENSITY = 9.144, 68.9e3, 2768.0  # m, MPa, kg/m^3
    JOINTS = np.array([(2, 1), (2, 0), (1, 1), (1, 0), (0, 1), (0, 0)]) * BAY  # the last two are held
    BARS = (4, 2), (2, 0), (5, 3), (3, 1), (2, 3), (0, 1), (4, 3), (5, 2), (2, 1), (3, 0)
    inputs = ArraySpec("loads", (2,), differentiable=False), ArraySpec("areas", (10,))
    outputs = ArraySpec("stress", (10,)), ArraySpec("shift", (8,))

    def __init__(self) -> None:
        super().__init__()
        ends = np.array([self.JOINTS[b] - self.JOINTS[a] for a, b in self.BARS])
        self.lengths = np.linalg.norm(ends, axis=1)  # m
        self.stretch = np.zeros((10, 12))  # of each bar, of the joints' shifts
        for bar, (a, b) in enumerate(self.BARS):
            along = ends[bar] / self.lengths[bar]
            self.stretch[bar, 2 * b : 2 * b + 2], self.stretch[bar, 2 * a : 2 * a + 2] = along, -along
        self.stretch = self.stretch[:, :8]

    def law(self, loads: Any, areas: Any) -> Any:
        """`(rows, 2)`, `(rows, 10)` to `(rows, 10)`, `(rows, 8)`."""
        of = library(areas)
        asarray = torch.as_tensor if of is torch else np.asarray
        stretch, lengths = asarray(self.stretch), asarray(self.lengths)
        springs = 100 * self.STIFF * areas / (1e3 * lengths)  # N/mm
        stiffness = of.einsum("rb,bi,bj->rij", springs, stretch, stretch)
        zero = 0 * loads[:, 0]
        force = of.stack([zero, zero, zero, -loads[:, 0], zero, zero, zero, -loads[:, 1]], 1) * 1e3
        shift = of.linalg.solve(stiffness, force[..., None])[..., 0]
        return self.STIFF * of.einsum("bi,ri->rb", stretch, shift) / (1e3 * lengths), shift


class Designer(nn.Module):
    """What is wanted to the numbers of a design, around zero, by two hidden layers.

    Args:
        lowest: of what is wanted, `(wanted,)`.
        highest: of that.
        numbers: of the design.
    """

    def __init__(self, lowest: Tensor, highest: Tensor, numbers: int) -> None:
        super().__init__()
        self.register_buffer("middle", (lowest + highest) / 2)
        self.register_buffer("reach", (highest - lowest) / 2)
        self.layers = nn.Sequential(
            nn.Linear(len(lowest), 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, numbers)
        )

    middle: Tensor
    reach: Tensor

    def forward(self, wanted: Tensor) -> Tensor:
        """`(rows, wanted)` to `(rows, numbers)`."""
        return self.layers((wanted - self.middle) / self.reach)


def lens_loss(solver: Callable[..., Any], raw: Tensor, wanted: Tensor) -> Tensor:
    """Square of where rays miss the image of their direction, in mrad^2; wanted: focal length, f-number."""
    focal, number = wanted.unbind(1)
    crude = raw.new_tensor([1.5, -1.5, 0.0, 1.0])  # times the focal length; far from good
    shaped = crude + 0.3 * raw
    design = torch.cat([shaped[:, :3] / focal[:, None], shaped[:, 3:] * focal[:, None]], 1)
    heights = solver(focal / number / 2, design)
    aim = focal[:, None] * torch.as_tensor(np.tan(Doublet.ANGLES)).to(heights)
    return (1e3 * (heights - aim) / focal[:, None]).square().mean(1, dtype=torch.float64)


def batch_loss(solver: Callable[..., Any], raw: Tensor, wanted: Tensor) -> Tensor:
    """Moles of C that miss those wanted, of D, and heat beyond the limit; wanted: A, C in mol, kJ/h."""
    charge = torch.stack([wanted[:, 0], torch.full_like(wanted[:, 0], 1.1685)], 1)
    policy = torch.cat([293 + 30 * torch.sigmoid(raw[:, :5]), 0.4 * torch.sigmoid(raw[:, 5:])], 1)
    amounts, heat = solver(charge, policy)
    over = torch.relu(heat / wanted[:, 2:] - 1) / 0.05
    missed, waste = (amounts[:, 2] - wanted[:, 1]) / 0.1, amounts[:, 3] / 0.5
    return missed.double().square() + waste.double().square() + over.double().square().mean(1)


def truss_loss(solver: Callable[..., Any], raw: Tensor, wanted: Tensor) -> Tensor:
    """Tonnes, and a price beyond limits; wanted: both loads in kN, and the largest shift in mm."""
    areas = 50 * torch.exp(raw)  # cm^2
    stress, shift = solver(wanted[:, :2], areas)
    over = torch.cat([stress.abs() / 172.0, shift.abs() / wanted[:, 2:]], 1).double()
    over = torch.relu(over - 1).sum(1)
    lengths = torch.as_tensor(TenBars().lengths)
    return TenBars.DENSITY * 1e-7 * (areas.double() * lengths).sum(1) + 10 * over + 10 * over.square()


def design(
    box: Formula,
    loss: Callable[[Callable[..., Any], Tensor, Tensor], Tensor],
    lowest: tuple[float, ...],
    highest: tuple[float, ...],
    hard: str,
    unit: str,
    learning_rate: float = 3e-3,
    root: bool = True,
) -> BenchmarkProblem:
    """The problem of a box that judges designs.

    Args:
        box: the box.
        loss: (solver, the network's numbers, what is wanted) -> of each row.
        lowest: of what is wanted.
        highest: of that.
        hard: one sentence: why it is in the table.
        unit: of the error.
        learning_rate: of Adam.
        root: whether the error is the root of the mean loss.
    """
    low, high = torch.tensor(lowest), torch.tensor(highest)
    numbers = box.inputs[1].shape[0]

    def drawn(seed: int, step: int, rows: int) -> Tensor:
        generator = zo.estimators.Key(seed, step).generator(DRAWN)
        return low + (high - low) * torch.rand(rows, len(low), generator=generator)

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return Designer(low, high, numbers)

    def objective(solver: Callable[..., Any]) -> Any:
        return lambda network, wanted: loss(solver, network(wanted), wanted)

    @torch.no_grad()
    def error(network: nn.Module, step: int) -> float:
        mean = objective(box.advance)(network, drawn(JUDGED, step, ROWS)).mean().item()
        return math.sqrt(mean) if root else mean

    return BenchmarkProblem(
        box=box,
        exact=box.advance,
        start=start,
        objective=objective,
        batch=lambda seed, step: drawn(seed, step, 4),
        error=lambda network: error(network, 1),
        validate=lambda network: error(network, 0),
        unit=unit,
        steps=300,
        learning_rate=learning_rate,
        hard=hard,
        fresh=drawn,
    )


DESIGNS: dict[str, Callable[[], BenchmarkProblem]] = {
    "lens": lambda: design(
        Doublet(),
        lens_loss,
        (60.0, 5.0),
        (160.0, 10.0),
        "four numbers that must cancel each other to a thousandth; curvatures of .01 beside 100 mm",
        "RMS distance of rays from the image of their direction, in mrad",
    ),
    "semi-batch": lambda: design(
        SemiBatch(),
        batch_loss,
        (8.0, 1.0, 100.0),
        (12.0, 1.8, 160.0),
        "temperatures and feeds of five times, of which later ones undo earlier ones; a limit with a kink",
        "RMS of misses, in tenths of a mole of product",
    ),
    "ten-bars": lambda: design(
        TenBars(),
        truss_loss,
        (200.0, 200.0, 40.0),
        (600.0, 600.0, 80.0),
        "limits at which bars meet, and a mass that no box says; compliance goes as one over area",
        "tonnes, with a price for each part beyond its limit",
        root=False,
    ),
}
