"""Run folders that were never run: figures, metrics and ledgers as a test wants them."""

import json
import math
from dataclasses import dataclass

import tasks
from tasks import Row, Run
from tasks.folder.result import of_rows
from tasks.folder.run import stage_name
from tasks.folder.terms import Terms

TWELVE = (
    "none", "no-gradient", "identity", "tangents", "student", "sparse-cge", "cge", "rge", "cma-es", "row-rge",
    "first-order", "my own way",
)  # fmt: skip


@dataclass(frozen=True)
class Config(tasks.Config):
    unroll: int = 6


def begun_run(root, *terms, command=None, **more_terms):
    """A run that has just begun, in a folder of its own below `root`; nothing is done in it."""
    return Run.create(root, Terms(*terms, **more_terms), command)


def made(
    root,
    values,
    *,
    seeds=(0,),
    metric="test loss",
    unit="",
    higher_is_better=False,
    validation=True,
    trust=(),
    rows_of=None,
    ledger=None,
    extra=None,
    failed=None,
    roles=None,
    by_row=None,
    finished=True,
    task="toy",
    **settings,
):
    """A run with a figure for each method: a number, or one for each seed; None where it is not finite.

    `by_row` has the numbers of test rows by method, the same with each seed; what they are the mean of is up
    to the test.

    Of the methods, all but "none" have ten steps with metrics; step k of seed s has the loss 1 / (k + s), and
    validations, after every second step, half of that.
    """
    config = Config(methods=tuple(values), steps=10, **settings)
    run = begun_run(root, task, "small", config, seeds, command=["blackbox", "run", task])
    table = []
    for seed in seeds:
        for place, (method, value) in enumerate(values.items()):
            each = (rows_of or {}).get(method, 0 if method == "none" else 100 * (place + 1))
            stage, steps = stage_name(seed, method), 0 if method == "none" else 10
            for step in range(steps and 1 + steps):
                if step:
                    known = {"gradient_tangent_error": 0.5 / step} if method in trust else {}
                    if method in trust:
                        known["gradient_tangent_distrusted"] = float(5 <= step < 8)
                    if method in trust and step % 5 == 0:
                        known |= {
                            "gradient_tangent_agreement": step / 10 - 0.2,
                            "gradient_tangent_missed": 1 / step,
                        }
                    run.log(
                        stage,
                        step,
                        rows=each * step // 10,
                        loss=1 / (step + seed),
                        seconds=0.1 * step,
                        **known,
                    )
                if validation and step % 2 == 0:
                    run.log(stage, step, validation=0.5 / (step + seed + 1), seconds=0.1 * step)
            own = value[seeds.index(seed)] if isinstance(value, list | tuple) else value
            own = None if own is None or math.isnan(own) else own
            counted = {"rows_run": each, "rows_asked": each, "rows_failed": 0, "seconds": 0.2}
            table.append(
                Row(
                    method, seed, metric, own, unit, each, place, 1.0,
                    {"weights": 7, "steps": steps, "dropped queries": 0, **(extra or {}).get(method, {})},
                    {**counted, **(ledger or {}).get(method, {})},
                    higher_is_better,
                    failed=(failed or {}).get(method, {}),
                    role=(roles or {}).get(method, ""),
                    **of_rows((by_row or {}).get(method, ())),
                )
            )  # fmt: skip
    if finished:
        run.finish(table)
    return run


def from_elsewhere(run, **settings):
    """Changes settings in a run's `config.json`, as another machine or hand might have them."""
    path = run.path / "config.json"
    content = json.loads(path.read_text())
    content.update(settings)
    path.write_text(json.dumps(content))
    (run.path / "begun.json").unlink(missing_ok=True)  # by which what is changed later is noticed
    return Run.open(run.path)
