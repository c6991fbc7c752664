"""How many steps NON should train: validation error by budget, six seeds, on the demo's settings.

    python -m benchmarks.non_budget

The preset takes the fewest steps with the lowest mean. Test data has no part in it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from benchmarks.protocol import write
from tasks import api
from tasks.wake_flow.problem import WakeFlow

BUDGETS = (100, 200, 400, 800, 1600)
SEEDS = 6


def main() -> None:
    """Train NON for each budget and seed, print and write the lowest validation errors."""
    table = []
    for budget in BUDGETS:
        problem = WakeFlow(folder=Path("data"), methods=("NON",), non_steps=budget)
        with TemporaryDirectory() as folder:
            found = api.run(problem, seeds=SEEDS, runs=folder).result.table
        errors = [row.extra["validation"] for row in found]
        mean = fmean(error for error in errors if isinstance(error, float))
        table.append({"steps": budget, "validation MAE": errors, "mean": mean})
        print(f"{budget:5d} steps: mean {mean:.4f} of {', '.join(f'{error:.4f}' for error in errors)}")
    write("non_budget", {"budgets": table})


if __name__ == "__main__":
    main()
