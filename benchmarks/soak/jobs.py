"""What runs under the soak: each task of the product, at a size at which a run takes some tens of seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A run of a task.

    Attributes:
        name: in the tables.
        task: its name for the console script.
        settings: what follows `blackbox run TASK`.
        rows: whether rows of its black box can be told to fail.
        step: seconds by which faults are late, at random: about what a step takes.
    """

    name: str
    task: str
    settings: tuple[str, ...]
    rows: bool = False
    step: float = 0.4

    def words(self, workers: int, timeout: float) -> list[str]:
        """The command line of a new run."""
        return ["run", self.task, *self.settings, *several(workers, timeout)]


def several(workers: int, timeout: float) -> list[str]:
    """The words that ask for processes."""
    return ["--workers", str(workers), "--timeout", str(timeout)]


def settings(preset: str, **changes: object) -> tuple[str, ...]:
    """The words of a preset with changes."""
    words = ["--preset", preset]
    for name, value in changes.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return tuple(words)


def options(preset: str, **changes: object) -> tuple[str, ...]:
    """The words for a problem, whose settings are options of their own."""
    return tuple(word.replace("--config.", "--", 1) for word in settings(preset, **changes))


# "auto" evaluators go by measured times, so that two runs agree to rounding alone: here they are named
_WAKE = {
    "width": 8,
    "reference_width": 16,
    "warm_up": 20,
    "frames": 40,
    "channels": (4,),
    "non_steps": 40,
    "horizon": 20,
    "test_starts": 1,
    "validation_starts": 1,
}
WAKE = Job(
    "wake-flow",
    "wake-flow",
    options(
        "demo",
        **_WAKE,
        methods=("SRC", "NON", "ZO-SOL", "TAN-SOL small"),
        unroll=4,
        zo_steps=80,
        fo_steps=60,
        coordinates=48,
        chunk=8,
        validate_every=40,
        checkpoint_every=5,
    ),
)
LONG_STEPS = Job(
    "wake-flow, long steps",
    "wake-flow",
    options(
        "demo",
        **_WAKE,
        methods=("SRC", "NON", "ZO-SOL"),
        unroll=32,
        batch=8,
        estimator="cge",
        zo_steps=4,
        chunk=22,
        validate_every=2,
        checkpoint_every=1,
    ),
    step=12.0,
)
SMOOTHING = Job(
    "denoised-smoothing",
    "denoised-smoothing",
    settings(
        "demo",
        methods=("none", "mse", "zo-ds", "deepzero", "student"),
        box="benchmarks.soak.boxes:classifier",
        attempts=8,
        depth=3,
        width=4,
        steps=60,
        queries=12_000,
        train_images=400,
        mu_queries=200,
        validation_images=50,
        validations=3,
        certify_images=5,
        n=200,
        n0=20,
        coordinates=24,
        ratio_directions=4,
        student_steps=60,
        student_first_steps=40,
        evaluator="stacked",
        checkpoint_every=5,
    ),
    rows=True,
)
IMAGES = Job(
    "image-classification",
    "image-classification",
    settings(
        "demo",
        methods=("deepzero", "rge"),
        train_images=320,
        validation_images=64,
        test_images=64,
        network="simple-3700",
        width=4,
        epochs=12,
        sparsity=0.97,
        pruning_directions=8,
        pruning_images=32,
        warm_up=0.5,
        evaluator="stacked",
        checkpoint_every=5,
    ),
)
JOBS = {job.name: job for job in (SMOOTHING, WAKE, IMAGES, LONG_STEPS)}
