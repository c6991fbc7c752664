"""A stage of training: what it carries from step to step, and its way to the checkpoint and back."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from tasks.errors import CheckpointError, ConfigurationError, Interrupted, NonFiniteLossError
from tasks.runs import checkpoint
from tasks.runs.folder import Run

_FORMAT = 1


class Stateful(Protocol):
    """What can be saved and put back: a module, an optimizer, a gradient estimator, a counter."""

    def state_dict(self) -> Any: ...  # noqa: ANN401, D102

    def load_state_dict(self, state_dict: Any, /) -> Any: ...  # noqa: ANN401, D102


@dataclass
class TrainingOutcome:
    """How a stage ended."""

    stage: str
    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time in optimiser steps, over all processes that worked on the stage; validation is apart."""
    best_step: int | None = None
    """Steps done when validation was lowest; None without (finite) validation."""
    best_validation: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last optimiser step returned."""


class Stage:
    """What a stage carries from step to step, and its way to the checkpoint and back."""

    def __init__(self, run: Run, stage: str, steps: int, state: Mapping[str, Stateful], model: str) -> None:
        self.outcome = TrainingOutcome(stage)
        self.restored = False
        self._run, self._steps, self._state, self._model = run, steps, state, model
        self._path = checkpoint_path(run.path, stage)
        self._best: Any = None

    def stepped(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Count a step and log it, or refuse to go on from a loss that is no number."""
        outcome = self.outcome
        loss = metrics.get("loss")
        if loss is None or not math.isfinite(loss):
            raise NonFiniteLossError(
                f"{outcome.stage}, step {outcome.step + 1} of {self._steps}: expected a finite loss, got "
                f"{loss}. Lower the learning rate, or look at what the black box returned; "
                "the last checkpoint is from before this step."
            )
        outcome.step += 1
        outcome.seconds += seconds
        # plain floats: a numpy.float64 in a checkpoint could not be read back
        outcome.metrics = {
            name: value if type(value) is int else float(value) for name, value in metrics.items()
        }
        self._log(**outcome.metrics)

    def validated(self, value: float) -> None:
        """Log a validation and keep the weights if it is the best so far; NaN never is."""
        outcome, value = self.outcome, float(value)
        self._log(validation=value)
        best = outcome.best_validation
        if math.isfinite(value) and (best is None or value < best):
            outcome.best_validation, outcome.best_step = value, outcome.step
            # a copy: state_dict() gives the weights themselves, which the next step changes
            self._best = copy.deepcopy(self._state[self._model].state_dict())

    def finish(self) -> None:
        """Load the best weights into the model and mark the stage as done."""
        if self._best is not None:
            self._state[self._model].load_state_dict(self._best)
            self._best = None
        self.save(finished=True)

    def save(self, *, finished: bool = False) -> None:
        """Write the checkpoint."""
        self._run.sync_metrics()
        self._path.parent.mkdir(exist_ok=True)
        content = {
            "format": _FORMAT,
            "finished": finished,
            "steps": self._steps,
            "outcome": dict(vars(self.outcome)),
            "state": {name: part.state_dict() for name, part in self._state.items()},
            "best": self._best,
            "rng": torch.get_rng_state(),
        }
        checkpoint.save(self._path, content)

    def restore(self) -> bool:
        """Load the checkpoint, if there is one; says whether the stage is finished."""
        stage = self.outcome.stage
        if not self._path.exists():
            self._run.truncate_metrics(stage, -1)
            return False
        content = checkpoint.load(self._path)
        mend = f"The settings or the code changed since; delete {self._path} to train this stage anew."
        for name, expected in (("format", _FORMAT), ("steps", self._steps)):
            if content.get(name) != expected:
                raise CheckpointError(
                    f"{stage}, checkpoint: expected {name} {expected}, got {content.get(name)!r}. {mend}"
                )
        if content["state"].keys() != self._state.keys():
            raise CheckpointError(
                f"{stage}, checkpoint: expected the states {sorted(self._state)}, "
                f"got {sorted(content['state'])}. {mend}"
            )
        for name, part in self._state.items():
            try:
                part.load_state_dict(content["state"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{stage}, checkpoint: expected a state that fits {name!r}, got: {error}. {mend}"
                ) from error
        self.outcome = TrainingOutcome(**content["outcome"])
        self._best = content["best"]
        torch.set_rng_state(content["rng"])
        self.restored = True
        if not content["finished"]:
            self._run.truncate_metrics(stage, self.outcome.step)
        return content["finished"]

    def interrupted(self) -> Interrupted:
        """The sentence that the user reads."""
        return Interrupted(f"Stopped at step {self.outcome.step} of {self._steps} of {self.outcome.stage}.")

    def _log(self, **values: float) -> None:
        outcome = self.outcome
        values = {**values, "seconds": round(outcome.seconds, 3)}
        self._run.log(outcome.stage, outcome.step, **values)


def checkpoint_path(folder: Path, stage: str) -> Path:
    """File of a stage's checkpoint in a run folder: "seed-0/zo-sol" -> checkpoints/seed-0__zo-sol.pt.

    Raises:
        ConfigurationError: the name could clash with another's, or leave the folder.
    """
    part = r"[A-Za-z0-9][A-Za-z0-9.-]*"
    if not re.fullmatch(f"{part}(/{part})*", stage):
        raise ConfigurationError(
            f"expected a stage named like 'seed-0/zo-sol' (letters, digits, '-', '.', parts joined by '/'), "
            f"got {stage!r}. Rename it."
        )
    return folder / "checkpoints" / f"{stage.replace('/', '__')}.pt"
