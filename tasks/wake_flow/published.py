"""The published wake-flow experiment: its errors, and every number in which a run differs from it.

Chen et al. 2024, "DeepZero" (the errors), whose set-up is that of Um et al. 2020, "Solver-in-the-Loop",
karman-2d (everything else).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tasks.report import html_report
from tasks.runs.result import Result
from tasks.wake_flow import tables
from tasks.wake_flow.config import Config, family_of
from tasks.wake_flow.diagnostics import DIAMETER
from tasks.wake_flow.evaluation import SOLVER

ERRORS = {"SRC": 0.180, "NON": 0.153, "ZO-SOL": 0.119, "FO-SOL": 0.074}
FLAG = 500.0  # the published "Re" over Re_D: it diffuses by 1e4 / Re in units in which U is 1 and D is 20
TRAIN = tuple(160000.0 * 2**i / FLAG for i in range(6))
TEST = tuple(240000.0 * 2**i / FLAG for i in range(5))
WEIGHTS = (56_898, 260_354)
UNROLLS = (16, 32)
WARM_UP = 1000.0 / DIAMETER  # in D / U
PRE_STEPS = 36_000  # 400 epochs of 90 steps: 95 % of six flows' 500 pairs, 32 at a time
LESS_TIME = "so that a run takes minutes"


@dataclass(frozen=True)
class Difference:
    """One number: what it is, as published, as here, and why."""

    what: str
    published: str
    here: str
    reason: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As a row of a table."""
        return self.what, self.published, self.here, self.reason


def differences(config: Config, weights: Mapping[str, int]) -> list[Difference]:
    """Every number in which a run differs from the publication; those that agree are left out.

    An epoch of the publication is one pass over the windows of its six flows, three at a time: 936 steps in
    the loop, 998 of NON; it took 100. "Published" is what the code of Um et al. does (karman-2d
    and its Makefile).

    Args:
        config: of the run.
        weights: of each method's network; none for SRC.
    """
    sizes = tuple(sorted({count for count in weights.values() if count}))
    rows = [
        _row("cells of the source", 32, config.width, LESS_TIME, _grid),
        _row("cells of the reference", 128, config.reference_width, LESS_TIME, _grid),
        _row("time step of the source", 1.0, config.dt, "a setting of this run"),
        _row("time step of the reference", 1.0, config.reference_dt, "less error in time on the finer grid"),
        _row(
            "time before the first frame (D / U)", WARM_UP, config.warm_up * config.reference_dt / DIAMETER,
            "vortices shed by then, from a start with a poke behind the cylinder",
        ),
        _row("frames of a simulation", 500, config.frames, LESS_TIME),
        _row(
            "Re_D trained on", TRAIN, config.train_reynolds,
            "on coarse grids the solver's own diffusion hides higher ones",
        ),
        _row("Re_D of the test", TEST, config.test_reynolds, "likewise"),
        _row(
            "weights of the networks", WEIGHTS, sizes,
            "each of ZO-SOL's weights costs queries; the larger network is TAN-SOL's",
        ),
        _row(
            "coordinates in a step of ZO-SOL", "not known to us", config.coordinates,
            "a query each; 569 are a hundredth of 56,898",
        ),
        _row("solver steps in a loss", UNROLLS, (config.unroll,), _less(config.unroll)),
        _row(
            "rollouts of the test", (1, 499), (config.test_starts, config.horizon),
            "more starts for each simulation, and an end before chance has the last word", _rollouts,
        ),
        _row("windows in a step", 3, config.batch, "a batched solver steps more for little"),
        _row(
            "steps of NON", 99_800, config.non_steps,
            "it grows unstable if it goes on: a fixed budget, found on validation flows",
        ),
        _row("steps of FO-SOL", 93_600, config.fo_steps, "from NON's weights, at a higher rate"),
        _row("steps of ZO-SOL", 93_600, config.zo_steps, "likewise"),
        _row("Adam's learning rate, NON", 1e-4, config.non_learning_rate, "fewer steps"),
        _row("Adam's learning rate, FO-SOL", 1e-4, config.fo_learning_rate, "fewer steps"),
        _row("Adam's learning rate, ZO-SOL", 1e-4, config.zo_learning_rate, "fewer steps"),
    ]  # fmt: skip
    if any(method.startswith("PRE") for method in config.methods):
        rows += [
            _row("steps of PRE", PRE_STEPS, config.pre_steps, "a fixed budget, as NON's"),
            _row("Adam's learning rate, PRE", 1e-3, config.pre_learning_rate, "a setting of this run"),
            _row("pairs in a step of PRE", 32, config.pre_batch, "a setting of this run"),
            _row("temporal regulariser of PRE", 1.0, config.pre_beta, "a setting of this run"),
            *_PRE,
        ]
    if config.large_blocks and any(family_of(method)[1] for method in config.methods):
        rows.append(
            _row(
                "activation of the residual network", "leaky ReLU, slope 0.3", "ReLU",
                "one for both networks; the smaller published one has it too",
            )
        )  # fmt: skip
    return [*ALWAYS, *(row for row in rows if row.published != row.here)]


def paper_table(result: Result, config: Config) -> html_report.Table:
    """The published errors beside ours."""
    ours = tables.means(result)
    solver = ours.get(SOLVER)
    lines = []
    for method, error in ERRORS.items():
        own = ours.get(method)
        share = "-" if own is None or solver is None else f"{own / solver:.2f}"
        here = "-" if own is None else f"{own:.3f}"
        lines.append((method, f"{error:.3f}", f"{error / ERRORS[SOLVER]:.2f}", here, share))
    return html_report.Table(
        ("method", "published MAE", "over SRC", "MAE here", "over SRC"),
        lines,
        caption=(
            "Published: Chen et al. (2024), a 32 x 64 solver at Re_D 480 to 7,680, with an error that is "
            f"defined nowhere; here: a {config.width} x {2 * config.width} solver at Re_D "
            f"{min(config.test_reynolds):g} to {max(config.test_reynolds):g} with other boundaries. So "
            "errors do not compare; what does is the share of the solver's error that each method leaves "
            "(over SRC)."
        ),
    )


def differences_table(result: Result, config: Config) -> html_report.Table:
    """Every number in which the run differs from the publication."""
    lines = [difference.cells for difference in differences(config, tables.weights(result))]
    return html_report.Table(("number", "published", "here", "reason"), lines, prose=True)


def _row(
    what: str, published: object, here: object, reason: str, show: Callable[[object], str] | None = None
) -> Difference:
    show = _plain if show is None else show
    return Difference(what, show(published), show(here), reason)


def _less(unroll: int) -> str:
    return "one of the two" if unroll in UNROLLS else LESS_TIME


ALWAYS = (
    Difference(
        "viscosity", "1e4 / Re, or 16 times that on another grid", "U D / Re_D on every grid",
        "two code paths take the same flag for different quantities; Re_D above is the flag over 500",
    ),
    Difference(
        "boundaries", "open on all sides; a mask sets the speed along the stream to 1 on the first two rows "
        "and the outer columns", "walls that nothing passes and that move at speed 1; inflow 1; outlet free",
        "the published boundaries shed weakly, at about half the frequency of a confined cylinder",
    ),
    Difference(
        "poke at the start", "1, on 10 x 4 cells of the reference", "0.5, a bell of a radius, at (50, 80)",
        "the same on every grid",
    ),
    Difference(
        "advection of the reference", "semi-Lagrangian", "MacCormack, without limiter",
        "the scheme's own diffusion on 128 x 256 would be a part of the truth",
    ),
    Difference(
        "flows for validation", "none: weights of the last epoch (PRE: 5 % of the pairs)",
        "Re_D of their own, by which the weights of every method are chosen",
        "a budget that is too long shows, and no test flow is looked at",
    ),
    Difference(
        "Adam's learning rate after the start", "constant", "falls to zero along a cosine",
        "fewer steps suffice",
    ),
    Difference(
        "scale of the network's inputs", "std of each component's modulus", "std of the speed",
        "one scale keeps directions",
    ),
    Difference(
        "scale of the network's output", "std of the speed", "std of the correction, about 1/8 of it",
        "it trains better: the lowest validation error of the scales tried",
    ),
    Difference(
        "loss", "half the sum of squares over steps", "the mean of squares",
        "a factor that Adam does not feel",
    ),
    Difference(
        "MAE", "defined nowhere", "mean over cells, components, steps, starts and Re, in units of U",
        "the simplest reading; so compare ratios to SRC, not errors",
    ),
)  # fmt: skip


_PRE = (
    Difference(
        "what PRE's fit is given", "fine less interpolated coarse velocity, made free of divergence first",
        "their difference as it is", "the fit asks for a correction without divergence in either case",
    ),
    Difference(
        "faces of PRE's correction", "all but those of the two outer cells",
        "all but those of walls and inflow", "these boundaries need no margin",
    ),
    Difference(
        "coarse flow of PRE", "corrected from the first step of the simulation on", "from the first frame on",
        "it begins where the other methods do, and saves the warm-up",
    ),
    Difference(
        "data of PRE", "standardised, each channel less its mean", "scaled as for the other methods",
        "one network for all methods",
    ),
)  # fmt: skip


def _rollouts(starts_and_steps: object) -> str:
    assert isinstance(starts_and_steps, tuple)
    starts, steps = starts_and_steps
    return f"{starts} of each flow, {steps} steps"


def _grid(width: object) -> str:
    assert isinstance(width, int)
    return f"{width} x {2 * width}"


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
