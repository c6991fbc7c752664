"""How many steps NON should train: validation error by budget, six seeds, on the demo's settings.

    python -m benchmarks.non_budget

The preset takes the fewest steps with the lowest mean. Test data has no part in it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch

from benchmarks.protocol import write
from simulators.wake_flow.box import WakeFlow
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.wake_flow import data, methods
from tasks.wake_flow.config import PRESETS
from tasks.wake_flow.trainer import Trainer

BUDGETS = (100, 200, 400, 800, 1600)
SEEDS = range(6)


def main() -> None:
    """Train NON for each budget and seed, print and write the lowest validation errors."""
    demo = PRESETS["demo"]
    torch.set_num_threads(demo.threads)
    flows = data.load(demo, Path("data"))
    solver = WakeFlow(demo.width, dt=demo.dt, failures="keep")
    pairs = data.pairs(flows.train, solver)
    scales = data.scales(flows.train, pairs)
    table = []
    for budget in BUDGETS:
        config = replace(demo, non_steps=budget)
        errors = []
        for seed in SEEDS:
            with TemporaryDirectory() as folder:
                run = Run.create(Path(folder), "wake-flow", "demo", config, (seed,))
                trainer = Trainer(run, config, flows, pairs, scales, solver, seed, Progress())
                errors.append(methods.non(trainer, config.channels).outcome.best_validation)
        mean = fmean(error for error in errors if error is not None)
        table.append({"steps": budget, "validation MAE": errors, "mean": mean})
        print(f"{budget:5d} steps: mean {mean:.4f} of {', '.join(f'{error:.4f}' for error in errors)}")
    write("non_budget", {"budgets": table})


if __name__ == "__main__":
    main()
