"""The wake-flow run: reference, training of every method and seed, evaluation, result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from simulators.wake_flow.box import WakeFlow
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row
from tasks.wake_flow import data, evaluation, methods
from tasks.wake_flow.config import METHODS, Config
from tasks.wake_flow.networks import NoCorrector
from tasks.wake_flow.trainer import Trained, Trainer

UNIT = "U"  # the inflow's speed


def run(run: Run, progress: Progress, data_folder: Path) -> None:
    """Do what is left of a run; it ends with `result.json`.

    Args:
        run: the run's folder, new or left off anywhere.
        progress: what the user sees.
        data_folder: where reference flows are kept.
    """
    config = run.configuration(Config)
    torch.set_num_threads(config.threads)
    flows = data.load(config, data_folder, progress.counter("reference flows (PhiFlow)"))
    origin = "Reused" if flows.reused else "Wrote"
    progress.say(f"{origin} reference flows {flows.path}")
    solver = WakeFlow(config.width, dt=config.dt, failures="keep")
    pairs = data.pairs(flows.train, solver)
    scales = data.scales(flows.train, pairs)
    table: list[Row] = []
    for seed in run.seeds:
        trainer = Trainer(run, config, flows, pairs, scales, solver, seed, progress)
        trained = _train(trainer)
        networks: dict[str, nn.Module] = {"SRC": NoCorrector()}
        networks |= {method: result.network for method, result in trained.items()}
        found = evaluation.evaluate(config, flows, solver, networks)
        evaluation.write(found, run.path / evaluation_name(seed))
        table += [_row(method, seed, found, trained.get(method)) for method in METHODS]
    Result.of(run, table).write(run.path)


def evaluation_name(seed: int) -> str:
    """File of a seed's errors and fields in the run folder."""
    return f"evaluation-seed-{seed}.h5"


def _train(trainer: Trainer) -> dict[str, Trained]:
    """Every method but SRC, in the order of `METHODS`."""
    config = trainer.config
    small = methods.non(trainer, config.channels, "non")
    fo, lr = config.fo_steps, config.fo_learning_rate
    trained = {"NON": small, "FO-SOL": methods.fo_sol(trainer, small.network, "fo-sol", fo, lr)}
    trained["ZO-SOL"] = methods.zo_sol(trainer, small.network)
    large = methods.non(trainer, config.large_channels, "non-large")
    fo, lr = config.large_steps, config.large_learning_rate
    trained["NON large"] = large
    trained["FO-SOL large"] = methods.fo_sol(trainer, large.network, "fo-sol-large", fo, lr)
    trained["TAN-SOL"] = methods.tan_sol(trainer, large.network)
    return trained


def _row(method: str, seed: int, found: evaluation.Evaluation, trained: Trained | None) -> Row:
    errors = found.errors[method]
    finite = np.isfinite(errors).all(axis=1)
    extra: dict[str, float | int | str | None] = {
        "MAE at the last step": float(errors[finite, -1].mean()) if finite.any() else None,
        "rollouts": len(errors),
        "rollouts that blew up": int((~finite).sum()),
    }
    if trained is None:
        return Row(method, seed, "MAE", _mean(errors), UNIT, extra=extra)
    outcome = trained.outcome
    extra |= {
        "weights": sum(parameter.numel() for parameter in trained.network.parameters()),
        "steps": outcome.step,
        "chosen step": outcome.best_step,
        "validation MAE": outcome.best_validation,
        "failed solver rows": trained.rows.failed,
        "dropped queries": trained.dropped,
    }
    return Row(
        method, seed, "MAE", _mean(errors), UNIT, trained.rows.rows, trained.queries, outcome.seconds, extra
    )


def _mean(errors: np.ndarray) -> float | None:
    """The mean over rollouts and steps; None if a rollout blew up, for a mean over the rest would flatter."""
    return float(errors.mean()) if np.isfinite(errors).all() else None
