"""Every method of a configuration, from its name to a trained network."""

from __future__ import annotations

from collections.abc import Callable

from tasks.wake_flow import limits
from tasks.wake_flow.methods.in_loop import chain, fo_sol, identity
from tasks.wake_flow.methods.supervised import non, pre
from tasks.wake_flow.methods.weights import tan_sol, zo_sol
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.trainer import Trained, Trainer

InLoop = Callable[[Trainer, Corrector, str, int, float], Trained]  # start, stage, steps, learning rate
IN_LOOP: dict[str, InLoop] = {
    "FO-SOL": fo_sol,
    "ZO-SOL": zo_sol,
    "chain": chain,
    "identity": identity,
    "TAN-SOL": tan_sol,
}


def train(trainer: Trainer) -> dict[str, Trained]:
    """Every method of the configuration but SRC, in its order; a stage that is finished is loaded."""
    trained: dict[str, Trained] = {}
    for method in trainer.config.methods:
        if method != "SRC":
            trained[method] = _one(trainer, method, trained)
    return trained


def stage_of(method: str) -> str:
    """The name of a method's stage in a run: "FO-SOL large" -> "fo-sol-large"."""
    return method.lower().replace(" ", "-")


def _one(trainer: Trainer, method: str, before: dict[str, Trained]) -> Trained:
    config, stage = trainer.config, stage_of(method)
    family, large = limits.family_of(method)
    hidden, blocks = (config.large_channels, config.large_blocks) if large else (config.channels, 0)
    if family == "NON":
        return non(trainer, hidden, stage, blocks, steps=config.steps_of(method)[0])
    if family in limits.SUPERVISED:
        return pre(trainer, hidden, stage, blocks, beta=config.pre_beta if family == "PRE" else 0.0)
    if config.start == "NON":
        start = before["NON large" if large else "NON"].network
    else:
        start = trainer.corrector(hidden, blocks)
    steps, learning_rate = config.steps_of(method)
    return IN_LOOP[family](trainer, start, stage, steps, learning_rate)
