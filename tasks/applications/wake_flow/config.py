"""The settings of the wake flow, their allowed values, and the presets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from simulators.wake_flow.geometry import LARGEST_REYNOLDS, LENGTHS, SMALLEST_WIDTH, SPEED, Channel
from tasks import configuration
from tasks.configuration import Count, Natural, Positive, ZerothOrder, refused

LARGEST_COURANT = 4.0
"""Cells that the inflow may cross in a step. Advection looks back along straight lines, so that it does not
blow up, but beyond this it jumps over what it should follow: on 16 cells across the cylinder has three."""

SUPERVISED = ("NON", "PRE", "PRE-SR")  # on pairs, without the solver in the loop
IN_LOOP = ("FO-SOL", "ZO-SOL", "chain", "identity", "TAN-SOL")
METHODS = (  # of the demo; TAN-SOL at a fifth of first order's rows
    *("SRC", "NON large", "TAN-SOL@960", "FO-SOL large@960", "FO-SOL large@4800"),
    *("NON", "FO-SOL", "ZO-SOL"),
)
SMALL_NETWORK = ("SRC", "NON", "PRE", "PRE-SR", "FO-SOL", "ZO-SOL", "chain", "identity", "TAN-SOL small")

Reynolds = Annotated[float, Field(gt=0, le=LARGEST_REYNOLDS)]
Several = Annotated[tuple[Reynolds, ...], Field(min_length=1)]
Channels = Annotated[tuple[Count, ...], Field(min_length=1)]


def method_name(family: str, large: bool) -> str:
    """The name of a family's method: ("FO-SOL", True) -> "FO-SOL large".

    TAN-SOL, which exists for large networks, says where it trains the small one.
    """
    if family == "TAN-SOL":
        return family if large else f"{family} small"
    return f"{family} large" if large else family


def family_of(method: str) -> tuple[str, bool]:
    """Return a method's family, and whether its network is large: "FO-SOL large@960" -> ("FO-SOL", True)."""
    name = without_budget(method)
    if name == "TAN-SOL":
        return name, True
    return name.removesuffix(" large").removesuffix(" small"), name.endswith(" large")


def without_budget(method: str) -> str:
    """A method's name without its budget of rows: "FO-SOL large@960" -> "FO-SOL large"."""
    return method.partition("@")[0]


def budget_of(method: str) -> int | None:
    """The solver rows that a method's training may take: "FO-SOL large@960" -> 960; None without such.

    Raises:
        ConfigurationError: There is no such number behind the "@".
    """
    name, at, rows = method.partition("@")
    if not at:
        return None
    if re.fullmatch("[1-9][0-9]{0,14}", rows) is None:
        raise refused("methods", f"a number of solver rows behind {name}@", method)
    return int(rows)


@dataclass(frozen=True)
class Config(configuration.Config):
    """Settings of a run. Lengths, times and speeds are in units in which inflow speed is 1, D is 20."""

    methods: tuple[str, ...] = METHODS
    """What is compared, in the order of the table: how it trains, " large" for the large network, and behind
    an "@", for methods in the loop, the solver rows that its training may take in place of a number of steps.
    PRE and PRE-SR learn corrections fitted beforehand; chain differentiates the network by autograd and the
    solver alone from function values; identity takes the solver's derivative for one."""
    steps: Count = 200
    """Optimiser steps of the methods in the loop with the small network, and of those that all problems have,
    such as tangents, which train it from the seed's first weights."""
    batch: Count = 4
    """Windows of reference data in a step."""
    learning_rate: Positive = 0.002
    """Of Adam, at the start, for all but large networks in the loop."""
    tuned: tuple[tuple[str, Count, Positive], ...] = (
        ("TAN-SOL@960", 1, 0.002),
        ("FO-SOL large@960", 1, 0.001),
        ("FO-SOL large@4800", 1, 0.002),
    )
    """Methods in the loop with windows in a step and a learning rate of their own: name, windows, rate. Those
    here were chosen by their error on validation flows, by `python -m benchmarks wake_rows --size small`."""
    replays: Natural | None = 4
    """Steps on recorded answers after each step of TAN-SOL and tangents, in which the solver does not run;
    None for as many as are trusted."""

    width: Annotated[int, Field(ge=SMALLEST_WIDTH)] = 16
    """Cells across of the coarse solver (the source); it has twice as many along."""
    reference_width: Count = 64
    """Cells across of the reference, a multiple of `width`; the published one has 128."""
    dt: Positive = 1.0
    """Time step of the source."""
    reference_dt: Positive = 0.5
    """Time step of the reference."""
    warm_up: Natural = 500
    """Reference steps before the first frame, so that vortices shed; the published one has 1000."""
    frames: Annotated[int, Field(ge=2, le=1_000_000)] = 261
    """Frames kept of each simulation, `dt` apart; the published set has 500."""
    train_reynolds: Several = (120.0, 240.0, 480.0, 960.0)
    """Re_D = U D / nu of the flows that are trained on."""
    validation_reynolds: Several = (200.0, 580.0)
    """Re_D by which weights are chosen."""
    test_reynolds: Several = (170.0, 340.0, 680.0)
    """Re_D for the last line; never trained on, never chosen by."""
    extrapolated_reynolds: tuple[Reynolds, ...] = ()
    """Further Re_D that are evaluated beside it, outside the range trained on and in no mean of the others.
    Their flows have a reference file of their own."""

    channels: Channels = (8,)
    """Hidden channels of the corrector, 5 x 5 convolutions: (8,) make 1,010 weights."""
    large_channels: Channels = (32, 32)
    """Of the larger one, that TAN-SOL trains: (32, 32) make 29,666 weights, (32, 64) the published 56,898."""
    large_blocks: Natural = 0
    """Residual blocks of the larger one, which then has one number of channels: 5 blocks of 32 channels are
    the published network of 260,354 weights. 0 for none."""
    start: Literal["NON", "random"] = "NON"
    """What the methods in the loop start from: NON's weights, or "random", the seed's first ones."""
    unroll: Count = 8
    """Solver steps in a loss; published are 16 and 32."""

    non_steps: Count = 800
    """Optimiser steps of NON, one solver step deep."""
    non_batch: Count = 32
    """Pairs of frames in a step of NON."""
    pre_steps: Count = 800
    """Optimiser steps of PRE and PRE-SR; half of their pairs are mirrored."""
    large_non_steps: Count = 400
    """Optimiser steps of NON with the larger network: in eight hundred it takes longer than TAN-SOL."""
    large_steps: Count = 150
    """Optimiser steps of all methods in the loop with the larger network."""
    large_learning_rate: Positive = 0.001
    """Of Adam, at the start."""

    estimator: Literal["cge", "sparse-cge", "rge"] = "sparse-cge"
    """Of ZO-SOL's gradient: "cge" and "sparse-cge", coordinate by coordinate; "rge", along random
    directions."""
    zeroth_order: ZerothOrder = ZerothOrder(
        mu=1e-4, coordinates=16, directions=96, input_mu=1e-2, input_directions=96
    )
    """Settings of ZO-SOL and chain, as of the methods that all problems have. A mu of 1e-2 is too large for
    forward differences here, and 1e-5 is lost in rounding; for central ones 1e-3 is best. input_mu is in
    units of the inflow's speed: a direction has length one over all cells, so that each moves by 32 times
    less on 16 x 32 cells, and 64 times less on 32 x 64."""

    horizon: Count = 200
    """Steps of the rollouts that validate and test."""
    test_starts: Count = 3
    """Rollouts for each test Re_D, from evenly spaced frames."""
    validation_starts: Count = 2
    """Rollouts for each validation Re_D."""
    validate_every: Count = 100
    """Optimiser steps between validations."""
    trajectories: bool = False
    """Whether to keep every predicted velocity as HDF5, one file for each seed."""

    def __post_init__(self) -> None:
        """Refuse what would fail, or mislead, only after the reference has been computed."""
        super().__post_init__()
        self._check_budgets()
        self._check_start()
        self._check_grids()
        self._check_flows()
        if not self.frames > max(self.horizon, self.unroll):
            raise refused("frames", f"more than horizon {self.horizon} and unroll {self.unroll}", self.frames)
        trained = {family_of(method)[0] for method in self.methods}
        if self.unroll < 2 and trained & {"TAN-SOL", "tangents"}:  # no weight moves an input of the solver
            raise refused("unroll", "at least 2 for TAN-SOL", self.unroll)
        self._check_networks()

    def steps_of(self, method: str) -> int:
        """Optimiser steps of a method that trains, where its name has no budget of rows."""
        family, large = family_of(method)
        if family == "NON":
            return self.large_non_steps if large else self.non_steps
        if family in SUPERVISED:
            return self.pre_steps
        return self.large_steps if large else self.steps

    def pace_of(self, method: str) -> tuple[int, float]:
        """Windows in a step of a method in the loop, and its first learning rate."""
        for name, batch, rate in self.tuned:
            if name == method:
                return batch, rate
        return self.batch, self.large_learning_rate if family_of(method)[1] else self.learning_rate

    def _check_start(self) -> None:
        """Refuse in-loop methods without the weights that they start from."""
        for place, method in enumerate(self.methods):
            family, large = family_of(method)
            first = method_name("NON", large)
            if family in IN_LOOP and self.start == "NON" and first not in self.methods[:place]:
                raise refused(
                    "methods", f"{first} before {method}, which starts from its weights", self.methods
                )

    def _check_budgets(self) -> None:
        """Refuse budgets that no step fits in, and what is tuned of methods that are not in the loop."""
        for method in self.methods:
            rows, family = budget_of(method), family_of(method)[0]
            if rows is not None and family not in IN_LOOP:
                raise refused("methods", f"{family} without a budget: it is not in the loop", method)
            least = 2 * self.pace_of(method)[0] * self.unroll
            if rows is not None and rows < least:
                raise refused("methods", f"at least {least} rows behind the @, for two steps", method)
        for method, *_ in self.tuned:
            if family_of(method)[0] not in IN_LOOP:
                raise refused("tuned", f"methods in the loop ({', '.join(IN_LOOP)})", method)

    def _check_grids(self) -> None:
        """Refuse grids and time steps that do not fit each other."""
        if self.reference_width % self.width:
            raise refused("reference_width", f"a multiple of width {self.width}", self.reference_width)
        ratio = self.dt / self.reference_dt
        if not (0.5 < ratio < math.inf and abs(ratio - round(ratio)) < 1e-9):
            raise refused("reference_dt", f"a whole fraction of dt {self.dt:g}", self.reference_dt)
        for name, step, cells in (
            ("dt", self.dt, self.width),
            ("reference_dt", self.reference_dt, self.reference_width),
        ):
            courant = SPEED * step * cells / LENGTHS[0]
            if courant > LARGEST_COURANT:
                raise refused(
                    name,
                    f"at most {LARGEST_COURANT * LENGTHS[0] / cells:.3g} on {cells} cells, where the inflow "
                    f"crosses {LARGEST_COURANT:g} cells in a step (here {courant:.3g})",
                    step,
                )

    def _check_flows(self) -> None:
        """Refuse Reynolds numbers that are too small for the grids, or in two of the sets."""
        grids = ((self.width, self.dt), (self.reference_width, self.reference_dt))
        smallest = max(Channel(width).smallest_reynolds(dt) for width, dt in grids)
        earlier_numbers: set[float] = set()
        for name in ("train_reynolds", "validation_reynolds", "test_reynolds", "extrapolated_reynolds"):
            numbers: Sequence[float] = getattr(self, name)
            if numbers and min(numbers) < smallest:
                raise refused(
                    name,
                    f"at least {smallest:.3g}, below which explicit diffusion is unstable with these grids "
                    "and time steps",
                    numbers,
                )
            if len(earlier_numbers | set(numbers)) < len(earlier_numbers) + len(numbers):
                raise refused(name, "numbers that are in no other set, each once", numbers)
            earlier_numbers |= set(numbers)
        low, high, beyond = min(self.train_reynolds), max(self.train_reynolds), self.extrapolated_reynolds
        if any(low <= number <= high for number in beyond):
            raise refused(
                "extrapolated_reynolds",
                f"numbers outside the range trained on, {low:g} to {high:g}",
                beyond,
            )

    def _check_networks(self) -> None:
        if self.large_blocks and len(self.large_channels) != 1:
            raise refused(
                "large_blocks", "0, or residual blocks with one number of large_channels", self.large_blocks
            )
        widths = (3, *self.channels, 2)  # 5 x 5 layers, 3 channels in, 2 out
        weights = sum(25 * a * b + b for a, b in pairwise(widths))
        coordinates = self.zeroth_order.coordinates
        if coordinates > weights:
            raise refused("coordinates", f"at most the {weights} weights of the network", coordinates)


SMALL = Config(
    methods=(*SMALL_NETWORK, "NON large", "FO-SOL large", "identity large", "TAN-SOL"),
    steps=300,
    replays=0,
    width=32,
    reference_width=128,
    extrapolated_reynolds=(80.0, 1900.0),  # below 66 the reference's explicit diffusion is unstable
    large_channels=(32, 64),
    large_non_steps=800,
    threads=2,
    zeroth_order=replace(Config.zeroth_order, coordinates=96, input_directions=48),
)
"""The published grids, the demo's flows, a thousand weights and the published 56,898. A seed takes 1,200
seconds of one core, the reference 23 of them (added up from a few steps of each method): 10 to 14 minutes on
two. `--large-channels 32 --large-blocks 5` trains the published 260,354 weights instead."""

PAPER = Config(
    methods=(*SMALL_NETWORK, "NON large", "PRE large", "FO-SOL large", "identity large", "TAN-SOL"),
    replays=0,
    width=32,
    reference_width=128,
    warm_up=2000,
    frames=500,
    train_reynolds=tuple(320.0 * 2**i for i in range(6)),
    validation_reynolds=(560.0, 2240.0, 8960.0),
    test_reynolds=tuple(480.0 * 2**i for i in range(5)),
    extrapolated_reynolds=(160.0, 20480.0),
    channels=(32, 64),
    large_channels=(32,),
    large_blocks=5,
    unroll=32,
    batch=3,
    learning_rate=1e-4,
    non_steps=99_800,
    large_non_steps=99_800,
    non_batch=3,
    pre_steps=30_000,
    steps=93_600,
    large_steps=93_600,
    large_learning_rate=1e-4,
    test_starts=3,
    validate_every=936,
    zeroth_order=replace(Config.zeroth_order, coordinates=569),
)
"""The published sets, sizes and budgets, 100 epochs of 936 steps (and 400 of PRE), where
benchmarks/results/README.md does not say otherwise. In that many steps ZO-SOL, which measures a hundredth
of the weights in each, asks for 5 billion solver rows: lower `--steps`. Published unrolls are 16 and 32;
`--unroll 16` takes the other."""

PRESETS = {"demo": Config(), "small": SMALL, "paper": PAPER}
