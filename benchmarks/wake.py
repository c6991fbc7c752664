"""The wake flow at its presets, whose `result.json` is committed as it is.

python -m benchmarks wake_flow_demo --size small     the README's table
python -m benchmarks wake_flow_small --size small    the published grids; its figures stand beside figure 7
python -m benchmarks wake_flow_small --size paper    the published sizes and budgets
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks import protocol
from tasks.runs import atomic
from tasks.runs.result import NAME, Result
from tasks.wake_flow.config import PRESETS
from tasks.wake_flow.problem import WakeFlow

PUBLISHED = "wake_flow_small"  # whose methods are those of the published figure, among others
CI = replace(
    PRESETS["demo"],
    width=8,
    reference_width=16,
    warm_up=200,
    frames=60,
    train_reynolds=(120.0, 480.0),
    validation_reynolds=(200.0,),
    test_reynolds=(170.0, 340.0),
    unroll=4,
    non_steps=40,
    steps=10,
    large_non_steps=10,
    large_steps=10,
    coordinates=24,
    input_directions=24,
    directions=24,
    horizon=40,
    test_starts=2,
    validation_starts=1,
    validate_every=10,
)
"""The smallest at which every part still runs: whether it works, not how well."""
LARGE = replace(
    PRESETS["small"],
    methods=("SRC", "NON large", "FO-SOL large", "TAN-SOL"),
    large_channels=(32,),
    large_blocks=5,
    large_non_steps=400,
    large_learning_rate=5e-4,
    threads=1,
)
"""The published network of 260,354 weights."""
TABLES = {
    "wake_flow_demo": (PRESETS["demo"], 3),
    "wake_flow_small": (replace(PRESETS["small"], threads=1), 3),
    "wake_flow_small_260354": (LARGE, 2),
}
"""Runs whose `result.json` is committed as it is: settings and seeds."""


def table(name: str, words: Sequence[str]) -> None:
    """Run one of `TABLES`, and keep its `result.json`; the ci size has its methods and is kept nowhere."""
    config, seeds = TABLES[name]
    sizes = {"ci": CI, "small": config}
    if name == PUBLISHED:
        sizes["paper"] = PRESETS["paper"]
    asked = protocol.options(name, __doc__, sizes, trains=True).parse_args(words)
    if asked.size == "ci":
        large = {"large_channels": (4,), "large_blocks": config.large_blocks and 1}
        sizes["ci"], seeds = replace(CI, methods=config.methods, **large), 1
    problem = WakeFlow(sizes[asked.size], folder=asked.data)
    run = protocol.finished(problem, asked.size, asked.seeds or range(seeds), asked.runs)
    for row in Result.read(run.path).table:
        print(f"{row.method:16s} seed {row.seed}  MAE {row.value}  {row.rows:,} rows")
    if asked.size != "ci":
        path = protocol.path(name, asked.size)
        atomic.write_bytes(path, (run.path / NAME).read_bytes())
        print(f"written to {path}")
