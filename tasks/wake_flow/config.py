"""The settings of the wake-flow task and its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from tasks.wake_flow import limits
from tasks.wake_flow.limits import ALL_METHODS, LARGEST_REYNOLDS, RATIOS, SMALLEST_WIDTH

__all__ = [
    "ALL_METHODS",
    "DESCRIPTION",
    "LARGEST_REYNOLDS",
    "METHODS",
    "PRESETS",
    "RATIOS",
    "SMALLEST_WIDTH",
    "Config",
]

DESCRIPTION = (
    "A network corrects a coarse solver of the wake behind a cylinder as it runs. Compared are the "
    "solver alone (SRC), a network trained without the solver in the loop (NON), and in the loop: with "
    "the solver's own derivative (FO-SOL), and from function values alone: with gradients of the weights "
    "(ZO-SOL), or of a larger network with learned tangents of the solver (TAN-SOL). More methods, and "
    "how they are estimated, are chosen by --config.methods and what follows it."
)
METHODS = ("SRC", "NON", "FO-SOL", "ZO-SOL", "NON large", "FO-SOL large", "TAN-SOL")  # of the demo


@dataclass(frozen=True)
class Config:
    """Settings of a run. Lengths, times and speeds are in units in which inflow speed is 1, D is 20."""

    methods: tuple[str, ...] = METHODS
    """What is compared, in the order of the table, out of `ALL_METHODS`: how it trains, and " large" for the
    large network. PRE and PRE-SR learn corrections fitted beforehand; chain differentiates the network by
    autograd and the solver alone from function values; identity takes the solver's derivative for one."""

    width: int = 16
    """Cells across of the coarse solver (the source); it has twice as many along."""
    reference_width: int = 64
    """Cells across of the reference, a multiple of `width`; the published one has 128."""
    dt: float = 1.0
    """Time step of the source."""
    reference_dt: float = 0.5
    """Time step of the reference."""
    warm_up: int = 500
    """Reference steps before the first frame, so that vortices shed; the published one has 1000."""
    frames: int = 261
    """Frames kept of each simulation, `dt` apart; the published set has 500."""
    train_reynolds: tuple[float, ...] = (120.0, 240.0, 480.0, 960.0)
    """Re_D = U D / nu of the flows that are trained on."""
    validation_reynolds: tuple[float, ...] = (200.0, 580.0)
    """Re_D by which weights are chosen."""
    test_reynolds: tuple[float, ...] = (170.0, 340.0, 680.0)
    """Re_D for the last line; never trained on, never chosen by."""
    extrapolated_reynolds: tuple[float, ...] = ()
    """Further Re_D that are evaluated beside it, outside the range trained on and in no mean of the others.
    Their flows have a reference file of their own."""

    channels: tuple[int, ...] = (8,)
    """Hidden channels of the corrector, 5 x 5 convolutions: (8,) make 1,010 weights."""
    large_channels: tuple[int, ...] = (32, 32)
    """Of the larger one, that TAN-SOL trains: (32, 32) make 29,666 weights, (32, 64) the published 56,898."""
    large_blocks: int = 0
    """Residual blocks of the larger one, which then has one number of channels: 5 blocks of 32 channels are
    the published network of 260,354 weights. 0 for none."""
    start: str = "NON"
    """What the methods in the loop start from: NON's weights, or "random", the seed's first ones."""
    unroll: int = 8
    """Solver steps in a loss; published are 16 and 32."""
    curriculum_unrolls: tuple[int, ...] = ()
    """Fewer solver steps to begin with, ascending; for each as many optimiser steps as `curriculum_steps`
    says, for all methods in the loop alike. None: `unroll` from the start."""
    curriculum_steps: tuple[int, ...] = ()
    """Optimiser steps at each of `curriculum_unrolls`."""
    batch: int = 4
    """Windows of reference data in a step."""

    non_steps: int = 800
    """Optimiser steps of NON, one solver step deep: of 100, 200 ... 1,600 the fewest with the
    lowest validation error (`benchmarks.non_budget`)."""
    non_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    non_batch: int = 32
    """Pairs of frames in a step of NON."""
    pre_steps: int = 800
    """Optimiser steps of PRE and PRE-SR; half of their pairs are mirrored."""
    pre_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    pre_batch: int = 32
    """Pairs of frames in a step of PRE and PRE-SR."""
    pre_beta: float = 1.0
    """How strongly PRE's fit holds on to the correction of the frame before; PRE-SR's is 0."""
    fo_steps: int = 300
    """Optimiser steps of FO-SOL, identity and TAN-SOL small; as many as ZO-SOL's, on the same batches."""
    fo_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    zo_steps: int = 300
    """Optimiser steps of ZO-SOL and chain."""
    zo_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    estimator: str = "sparse-cge"
    """Of ZO-SOL's gradient: "cge" and "sparse-cge", coordinate by coordinate; "rge" and "sparse-rge", along
    random directions; "hybrid", coordinates of the sparse set and directions in all others. Two correct the
    gradient of identity, which costs a base evaluation: "control-variate" along random directions, without
    bias, and "surrogate-filled" at coordinates drawn by its size, where it fills all others."""
    scheme: str = "forward"
    """Differences: "forward", or "central" with twice the queries (and antithetic directions)."""
    directions: int = 96
    """Random directions in a step of those that take some."""
    chunk: int | None = None
    """Queries of ZO-SOL that run together, and that several processes share out; None for what memory and
    cache allow. Another number rounds otherwise."""
    coordinates: int = 96
    """Coordinates in a step's sparse set, drawn anew every step."""
    ratios: str = "uniform"
    """How they spread over the layers: "uniform", alike, or with the layer ratios that "zo-grasp", "zo-snip"
    or "magnitude" give the network that ZO-SOL starts from."""
    mu: float = 1e-4
    """Smoothing parameter of the weights: of forward differences 1e-2 is too large here, and 1e-5 lost in
    rounding; of central ones 1e-3 is best."""
    chain_queries: int = 96
    """Random directions at the solver's input in a step of chain, for each row and solver step: as many rows
    as ZO-SOL's coordinates take."""
    chain_mu: float = 1e-2
    """Smoothing parameter of chain, in units of the inflow's speed: a direction has length one over all
    cells, so that each moves by 32 times less on 16 x 32 cells, and 64 times less on 32 x 64."""
    large_non_steps: int = 400
    """Optimiser steps of NON with the larger network: in eight hundred it takes longer than TAN-SOL."""
    large_steps: int = 150
    """Optimiser steps of all methods in the loop with the larger network."""
    large_learning_rate: float = 0.001
    """Of Adam, at the start; it falls to zero along a cosine."""
    probes: int = 2
    """Moved copies of the network that run beside it in a step of TAN-SOL."""
    probe_mu: float = 1e-3
    """Standard deviation by which a probe moves each weight."""

    horizon: int = 200
    """Steps of the rollouts that validate and test."""
    test_starts: int = 3
    """Rollouts for each test Re_D, from evenly spaced frames."""
    validation_starts: int = 2
    """Rollouts for each validation Re_D."""
    validate_every: int = 100
    """Optimiser steps between validations."""
    checkpoint_every: int = 25
    """Optimiser steps between checkpoints."""
    trajectories: bool = False
    """Whether to keep every predicted velocity as HDF5, one file for each seed."""
    threads: int = 1
    """Of torch on the CPU. Two are up to twice as fast on idle cores, and ten times slower where another
    process wants one of them. Results are equal to the bit for equal numbers of threads."""
    device: str = "cpu"
    """Where training and rollouts run: "cpu", or "cuda" on a GPU. References are always made on the CPU, and
    measured there."""

    def __post_init__(self) -> None:
        """Refuse what would fail, or mislead, only after the reference has been computed."""
        counts = (
            "unroll batch non_steps non_batch pre_steps pre_batch fo_steps zo_steps coordinates directions "
            "chain_queries large_non_steps large_steps probes horizon test_starts validation_starts "
            "validate_every checkpoint_every threads"
        )
        for name in counts.split():
            if not getattr(self, name) >= 1:  # "not", here and below: every comparison with NaN is false
                self._refuse(name, "a whole number >= 1")
        rates = "non_learning_rate pre_learning_rate fo_learning_rate zo_learning_rate large_learning_rate"
        for name in ("channels", "large_channels"):
            if not (getattr(self, name) and all(count >= 1 for count in getattr(self, name))):
                self._refuse(name, "whole numbers >= 1, one for each hidden layer")
        for name in f"dt reference_dt {rates} mu chain_mu probe_mu".split():
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "a finite number > 0")
        if self.chunk is not None and not self.chunk >= 1:
            self._refuse("chunk", "a whole number >= 1, or none")
        if not 0 <= self.pre_beta < math.inf:
            self._refuse("pre_beta", "a finite number >= 0")
        for name, choices in (
            ("ratios", RATIOS),
            ("estimator", limits.ESTIMATORS),
            ("scheme", limits.SCHEMES),
            ("device", limits.DEVICES),
        ):
            if getattr(self, name) not in choices:
                self._refuse(name, f"one of {', '.join(choices)}")
        limits.check_methods(self.methods, self.start)
        limits.check_reference(self.width, self.reference_width, self.dt, self.reference_dt, self.warm_up)
        grids = ((self.width, self.dt), (self.reference_width, self.reference_dt))
        smallest = max(limits.smallest_reynolds(width, dt) for width, dt in grids)
        limits.check_reynolds(self.train_reynolds, self.validation_reynolds, self.test_reynolds, smallest)
        limits.check_extrapolated(
            self.extrapolated_reynolds, self.train_reynolds, self.test_reynolds, smallest
        )
        if not self.frames > max(self.horizon, self.unroll):
            self._refuse("frames", f"more than horizon {self.horizon} and unroll {self.unroll}")
        counts = [self.steps_of(method)[0] for method in self.methods if self._in_loop(method)]
        if counts:
            stages = self.curriculum_unrolls, self.curriculum_steps
            limits.check_curriculum(self.methods, self.unroll, *stages, min(counts))
        self._check_networks()

    def steps_of(self, method: str) -> tuple[int, float]:
        """Optimiser steps of a method that trains, and its first learning rate."""
        family, large = limits.family_of(method)
        if family == "NON":
            return (self.large_non_steps if large else self.non_steps), self.non_learning_rate
        if family in limits.SUPERVISED:
            return self.pre_steps, self.pre_learning_rate
        if large:
            return self.large_steps, self.large_learning_rate
        if family in ("ZO-SOL", "chain"):
            return self.zo_steps, self.zo_learning_rate
        return self.fo_steps, self.fo_learning_rate

    def unroll_at(self, step: int) -> int:
        """Solver steps in the loss of an optimiser step."""
        for unroll, count in zip(self.curriculum_unrolls, self.curriculum_steps, strict=True):
            if step < count:
                return unroll
            step -= count
        return self.unroll

    @staticmethod
    def _in_loop(method: str) -> bool:
        return limits.family_of(method)[0] in limits.IN_LOOP

    def _check_networks(self) -> None:
        if not (self.large_blocks >= 0 and (self.large_blocks == 0 or len(self.large_channels) == 1)):
            self._refuse("large_blocks", "0, or residual blocks with one number of large_channels")
        widths = (3, *self.channels, 2)  # 5 x 5 layers, 3 channels in, 2 out
        weights = sum(25 * a * b + b for a, b in pairwise(widths))
        if self.coordinates > weights:
            self._refuse("coordinates", f"at most the {weights} weights of the network")
        if self.estimator == "hybrid" and self.coordinates == weights:
            self._refuse("coordinates", f"fewer than the {weights} weights of the network for hybrid")

    def _refuse(self, name: str, expected: str) -> None:
        raise limits.refuse(name, expected, getattr(self, name))


SMALL_NETWORK = ("SRC", "NON", "PRE", "PRE-SR", "FO-SOL", "ZO-SOL", "chain", "identity", "TAN-SOL small")

SMALL = Config(
    methods=(*SMALL_NETWORK, "NON large", "FO-SOL large", "identity large", "TAN-SOL"),
    width=32,
    reference_width=128,
    extrapolated_reynolds=(80.0, 1900.0),  # below 66 the reference's explicit diffusion is unstable
    large_channels=(32, 64),
    large_non_steps=800,
    chain_queries=48,
    threads=2,
)
"""The published grids, the demo's flows, a thousand weights and the published 56,898. A seed takes 1,200
seconds of one core, the reference 23 of them (added up from a few steps of each method): 10 to 14 minutes on
two. `--config.large-channels 32 --config.large-blocks 5` trains the published 260,354 weights instead."""

PAPER = Config(
    methods=(*SMALL_NETWORK, "NON large", "PRE large", "FO-SOL large", "identity large", "TAN-SOL"),
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
    non_steps=99_800,
    large_non_steps=99_800,
    non_learning_rate=1e-4,
    non_batch=3,
    pre_steps=30_000,
    pre_learning_rate=1e-4,
    fo_steps=93_600,
    fo_learning_rate=1e-4,
    zo_steps=93_600,
    zo_learning_rate=1e-4,
    coordinates=569,
    large_steps=93_600,
    large_learning_rate=1e-4,
    test_starts=3,
    validate_every=936,
    checkpoint_every=234,
)
"""The published sets, sizes and budgets, 100 epochs of 936 steps (and 400 of PRE), where
`published.differences` does not say otherwise. In that many steps ZO-SOL, which measures a hundredth of the
weights in each, asks for 5 billion solver rows: lower `--config.zo-steps`. Published unrolls are 16 and 32;
`--config.unroll 16` takes the other."""

PRESETS = {"demo": Config(), "small": SMALL, "paper": PAPER}
