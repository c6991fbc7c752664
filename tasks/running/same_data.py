"""The data of a run are the same when it goes on: digests of them, in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from tasks.folder import atomic, changed_code, checkpoint, place, reading
from tasks.folder.machine import changes, machine, versions
from tasks.folder.run import Run, stage_name
from tasks.methods.by_name import methods_named
from tasks.planning.plan import Plan
from tasks.problem.problem import Problem
from tasks.rows.binding import Bound
from tasks.workers import group
from zo.batches import Batch, bits, tensors

BLOCK = 2**22  # numbers that are read at once
PARTS = "training", "validation", "test"
MACHINE = "cpu", "gpu"  # another one rounds otherwise in what computes data
UNKNOWN = (
    "nothing that the run keeps. A random generator without a seed draws other rows in each process: draw by "
    "tasks.Data.drawn(draw, ...), or with a seed, as torch.Generator().manual_seed(0) and "
    "numpy.random.default_rng(0) have, and begin a new run. Else a file that data() reads, the number of "
    "threads or the budget is another one"
)


def warn_of_other_data(run: Run, plan: Plan, bound: Bound, programs: str) -> None:
    """Say that a run goes on with other data than it began with; where it begins, write their digests down.

    Networks that are trained or judged on other rows do not compare. The run goes on all the same, since
    data that are computed may differ by rounding alone, as with another number of threads.

    Args:
        run: The run's folder.
        plan: A plan that is settled.
        bound: Its problem in the run; data that are not made by now are not looked at.
        programs: The boxes' programs and files that have changed, in words.

    Warns:
        CheckpointWarning: They differ; what else has changed is named.
    """
    parts, reason = "", ""
    if group.rank() == 0 and "data" in vars(bound.problem):
        parts, reason = _differences(run, plan, bound, programs)
    parts, reason = group.of_all((parts, reason))[0]  # all say so, or none
    if parts:
        changed_code.warn_of_data(run, f"its {parts} rows", reason or UNKNOWN)


def _differences(run: Run, plan: Plan, bound: Bound, programs: str) -> tuple[str, str]:
    """The parts of the data that differ from those of the beginning, and what may be the reason, in words."""
    path, made_on = run.path / place.DATA, machine()
    begins = not _is_at_work(run, plan)
    if not begins and not path.is_file():  # of an older version
        return "", ""
    now = _digests(bound.problem, plan.seeds[0]) | {name: str(made_on[name]) for name in MACHINE}
    if begins:
        atomic.write_json(path, now)
        return "", ""
    earlier = reading.json_object(path, "Delete it, and resume again.")
    differing = [name for name in PARTS if name in earlier and name in now and earlier[name] != now[name]]
    if not differing:
        return "", ""
    code = changed_code.in_words(run, plan.terms.code)
    machines = changes(*({name: str(facts.get(name)) for name in MACHINE} for facts in (earlier, now)))
    reasons = [code, programs, changes(run.versions, versions()), machines]
    if bound.ledger.answers.full:
        reasons.append("boxes answer a part of the data, of which not all was kept")
    return _listed(differing), ", ".join(filter(None, reasons))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _is_at_work(run: Run, plan: Plan) -> bool:
    """Say whether something of a run is trained or judged."""
    stages = [stage_name(seed, name) for seed in plan.seeds for name in methods_named(plan.problem)]
    files = (checkpoint.of_stage, checkpoint.evaluation)
    return run.begun or any(file(run.path, stage).exists() for file in files for stage in stages)


class _Asks(Exception):
    """A training batch asks a box, whose rows would count."""


def _digests(problem: Problem, seed: int) -> dict[str, str]:
    """Digests of the parts that there are: of rows at hand, or of the first training batch of a seed."""

    def refuse(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        raise _Asks

    data = problem.data
    parts = {"validation": data.validation, "test": data.test}
    try:
        with torch.random.fork_rng(devices=()), intercepted(refuse):
            torch.manual_seed(seed)
            parts["training"] = data.train(seed, 0) if data.rows is None else data.rows
    except _Asks:
        pass
    digests = {name: digest(batch) for name, batch in parts.items() if batch is not None}
    return {name: value for name, value in digests.items() if value}


def digest(batch: Batch) -> str:
    """The first digits of a checksum of a batch's numbers; "" where they cannot be read."""
    state = blake2b(digest_size=16)
    try:
        for tensor in tensors(batch):
            state.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            _add(state, tensor.detach())
    except (RuntimeError, TypeError, NotImplementedError):  # such as of sparse tensors, or of no memory
        return ""
    return state.hexdigest()


def _add(state: blake2b, tensor: Tensor) -> None:
    """Read the numbers of a tensor, block by block of rows."""
    if not tensor.numel():
        return
    rows = tensor if tensor.ndim else tensor[None]
    for block in rows.split(max(1, BLOCK * len(rows) // rows.numel())):
        state.update(bits(block.cpu().resolve_conj().resolve_neg()).numpy().data)
