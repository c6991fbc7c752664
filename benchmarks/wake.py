"""The wake flow at its presets, whose `result.json` is committed with the commit that it was measured at.

python -m benchmarks wake_rows --size small          batch and learning rate of methods with a budget of rows
python -m benchmarks wake_flow_demo --size small     the README's table
python -m benchmarks wake_flow_small --size small    the published grids; its figures stand beside figure 7
python -m benchmarks wake_flow_small --size paper    the published sizes and budgets
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import geometric_mean
from typing import Any

from benchmarks import protocol
from tasks.applications.wake_flow.config import PRESETS, Config, budget_of, without_budget
from tasks.applications.wake_flow.problem import WakeFlow
from tasks.folder import atomic
from tasks.folder.result import NAME, Result

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
    horizon=40,
    test_starts=2,
    validation_starts=1,
    validate_every=10,
    zeroth_order=replace(PRESETS["demo"].zeroth_order, coordinates=24, input_directions=24, directions=24),
)
"""The smallest at which every part still runs: whether it works, not how well."""
TABLES = {
    "wake_flow_demo": (PRESETS["demo"], 3),
    "wake_flow_small": (replace(PRESETS["small"], threads=1), 3),
}
"""Runs whose `result.json` is committed: settings and seeds."""


def table(name: str, words: Sequence[str]) -> None:
    """Run one of `TABLES`, and keep its `result.json`; the ci size has its methods and is kept nowhere."""
    config, seeds = TABLES[name]
    sizes = {"small": config}
    if name == PUBLISHED:
        sizes["paper"] = PRESETS["paper"]
    asked = protocol.options(name, __doc__, ("ci", *sizes), trains=True).parse_args(words)
    if asked.size == "ci":
        sizes["ci"], seeds = _tiny(config), 1
    problem = WakeFlow(sizes[asked.size], folder=asked.data)
    run = protocol.finished(problem, asked.size, asked.seeds or range(seeds), asked.runs)
    for row in Result.read(run.path).table:
        print(f"{row.method:16s} seed {row.seed}  MAE {row.value}  {row.rows:,} rows")
    if asked.size != "ci":
        path = protocol.path(name, asked.size)
        result = json.loads((run.path / NAME).read_text(encoding="utf-8"))
        atomic.write_json(path, result | {"commit": protocol.commit()})
        print(f"written to {path}")


BUDGETED = tuple(method for method in PRESETS["demo"].methods if budget_of(method) is not None)
PACES = ((1, 0.001), (1, 0.002), (4, 0.002), (1, 0.0005), (4, 0.001))  # windows in a step, learning rate
TUNED_BY = (3, 4)  # seeds; those of the demo's table are others


def rows(words: Sequence[str]) -> None:
    """Choose batch and learning rate of the demo's methods with a budget of rows: see `Config.tuned`.

    By the error on validation flows alone, the geometric mean over two seeds that are not those of the demo's
    table. Each pace and seed is a run of its own, which goes on where it was stopped.
    """
    asked = protocol.options("wake_rows", rows.__doc__, trains=True).parse_args(words)
    config = replace(PRESETS["demo"], methods=("NON large", *BUDGETED))
    paces, seeds = PACES, TUNED_BY
    if asked.size == "ci":
        config, paces, seeds = _tiny(config), PACES[:1], (0,)
    names = config.methods[1:]
    tried: list[dict[str, Any]] = []
    for (batch, rate), seed in product(paces, asked.seeds or seeds):
        config = replace(config, tuned=tuple((name, batch, rate) for name in names))
        run = protocol.finished(WakeFlow(config, folder=asked.data), asked.size, (seed,), asked.runs)
        for row in Result.read(run.path).table[1:]:
            figures = {name: row.extra[name] for name in ("steps", "chosen step", "validation")}
            tried.append(
                {"method": row.method, "batch": batch, "learning rate": rate, "seed": seed}
                | figures
                | {"rows": row.rows, "seconds": row.seconds}
            )
    chosen = {name: _best([row for row in tried if row["method"] == name]) for name in names}
    for name, pace in chosen.items():
        print(f"{name:18s} {pace}")
    results = {"seeds": sorted({row["seed"] for row in tried}), "chosen": chosen, "tried": tried}
    protocol.write("wake_rows", words, results, protocol.path("wake_rows", asked.size))


def _best(tried: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The pace with the lowest error on validation flows, the geometric mean over seeds."""
    errors: dict[tuple[int, float], list[float]] = {}
    for row in tried:
        errors.setdefault((row["batch"], row["learning rate"]), []).append(row["validation"])
    means = {pace: geometric_mean(errors_of_pace) for pace, errors_of_pace in errors.items()}
    batch, rate = min(means, key=lambda pace: means[pace])
    return {"batch": batch, "learning rate": rate, "validation": means[batch, rate]}


def _tiny(config: Config) -> Config:
    """The ci size with the methods of another configuration, at a twentieth of their budgets."""
    methods = tuple(
        method if (budget := budget_of(method)) is None else f"{without_budget(method)}@{budget // 20}"
        for method in config.methods
    )
    return replace(CI, methods=methods, large_channels=(4,), large_blocks=config.large_blocks and 1)
