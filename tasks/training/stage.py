"""A stage of training: its state from step to step, and its way to the checkpoint and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from blackbox import Ledger
from blackbox.notices import Notices, warn
from blackbox.outside import exactly
from tasks.errors import CheckpointError, CheckpointWarning, Interrupted, NonFiniteLossError, ProblemWarning
from tasks.folder import atomic, checkpoint, metrics_file, reading, row_counts, stamp
from tasks.folder.atomic import writing
from tasks.folder.machine import changes, versions
from tasks.folder.pace import Pace
from tasks.folder.run import Run
from tasks.folder.terms import HARMLESS, differences
from tasks.folder.window_files import WindowFiles
from tasks.problem.trained import TrainingOutcome
from tasks.training.windows import WindowLosses
from tasks.workers import group
from zo.errors import FailedBatchError, NonFiniteGradientError
from zo.keep_best import FEW, lower, with_best

LOST_STEPS, LOST_ROWS = "lost_steps", "lost_rows"  # without a gradient so far; rows of those right before
COUNTED = "queries", "dropped"  # metrics that count from the first step on
MOST_LOST = 10  # rows that fail one after another in batches that fail as a whole: no chance any more
_AWAY = (
    " If the box was away, as a server or a licence may be, blackbox.Retrying(box, attempts=7, backoff=2) "
    "around it waits a minute or two."
)
_FORMAT = 2
_PARTS = {  # of a checkpoint
    "format": int,
    "finished": bool,
    "steps": int,
    "settings": dict,
    "outcome": dict,
    "state": dict,
    "rng": Tensor,
    "versions": dict,
}


class Stateful(Protocol):
    """An object that can be saved and put back: a module, an optimizer, a gradient estimator, a counter."""

    def state_dict(self) -> Any: ...  # noqa: D102

    def load_state_dict(self, state_dict: Any, /) -> Any: ...  # noqa: D102


class Stage:
    """The state that a stage carries from step to step, and its way to the checkpoint and back.

    Attributes:
        steps: The present number of its steps, for sentences; a budget may leave others than were planned.
        torn: Whether an earlier process has gone back to the last checkpoint because of rows that failed.
    """

    def __init__(self, run: Run, stage: str, steps: int, state: Mapping[str, Stateful], model: str) -> None:
        self.outcome = TrainingOutcome(stage)
        self.restored, self.steps = False, steps
        self._run, self._steps, self._state, self._model = run, steps, state, model
        self._path = checkpoint.of_stage(run.path, stage)
        self._torn, self.torn = self._path.with_suffix(".torn"), False
        self._windows = WindowFiles(checkpoint.windows_of(self._path))
        self._best: Any = None
        self._best_rows: Tensor | None = None  # the losses of the best validations
        self._notices = Notices()
        self._versions = versions()
        self._saved: int | None = None  # step of the last checkpoint, None while there is none
        self._pace = Pace()
        self.pending = False  # whether the validation after the step at hand is still to be made

    def without_gradient(self, error: FailedBatchError) -> dict[str, float]:
        """The metrics of a step without a gradient; raises it where too many are, or all of the stage."""
        metrics = self.outcome.metrics
        rows, lost_steps = metrics.get(LOST_ROWS, 0) + error.rows, metrics.get(LOST_STEPS, 0)
        by_gradient = isinstance(error, NonFiniteGradientError)
        if rows >= MOST_LOST and not by_gradient:
            error.args = (f"{error}{_AWAY}",)
        if rows >= MOST_LOST or lost_steps + 1 == self._steps:
            raise error
        if not lost_steps:
            several = f"{MOST_LOST} of them come" if by_gradient else f"{MOST_LOST} rows fail"
            rare = "" if by_gradient else " Larger batches make them rare."
            warn(
                f"{self.outcome.stage}: {error} This step changes nothing, nor do others like it, unless "
                f"{several} one after another; {LOST_STEPS} in metrics.jsonl counts them.{rare}",
                ProblemWarning,
            )
        counts = {name: metrics[name] for name in COUNTED if name in metrics}  # all else is of another step
        return {**counts, "loss": math.nan, LOST_STEPS: lost_steps + 1, LOST_ROWS: rows}

    def stepped(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Count a step and log it, or refuse to go on from a loss that is no number."""
        outcome = self.outcome
        loss = metrics.get("loss")
        if LOST_ROWS not in metrics and (loss is None or not math.isfinite(loss)):
            raise NonFiniteLossError(
                f"{outcome.stage}, step {outcome.step + 1} of {self.steps}: expected a finite loss, got "
                f"{loss}. Lower the learning rate, or look at the objective and what black boxes returned. "
                f"{self._last_good()}"
            )
        outcome.step += 1
        outcome.seconds += seconds
        if lost_steps := outcome.metrics.get(LOST_STEPS):
            metrics = {LOST_STEPS: lost_steps, **metrics}
        # plain floats: a numpy.float64 would be written as another type than it is read back
        outcome.metrics = {
            name: value if type(value) is int else float(value) for name, value in metrics.items()
        }
        self.log(**outcome.metrics)

    def spent(self, counts: Ledger) -> None:
        """Count what black boxes did in a step."""
        self.outcome.ledger.add(counts)

    def validated(self, losses: float | Tensor | WindowLosses) -> float:
        """Log a validation and keep the weights if it is the best so far; returns the mean of finite losses.

        Args:
            losses: The mean, or those of the same rows each time, `(rows,)`: then the weights are compared on
                the rows that came back, unless more than a tenth did not. Of windows the rows are others
                each time. Then the last weights are kept, unless more than a tenth of the rows failed, or
                the losses are clearly above the lowest before.

        Warns:
            ProblemWarning: So many rows failed that these weights cannot be chosen; once for the stage.
        """
        outcome = self.outcome
        if isinstance(losses, WindowLosses):
            all_losses, rows = losses.losses, losses.ranked
            failed, count = losses.counts
        else:
            all_losses = rows = torch.from_numpy(exactly(losses, "float64")).flatten()
            failed, count = int((~rows.isfinite()).sum()), len(rows)
        value, many = float(all_losses[all_losses.isfinite()].mean()), failed > FEW * count
        self.log(validation=value, **({"validation_failed": failed} if failed and count > 1 else {}))
        outcome.rejected += many
        if many:
            several = f"at most a tenth of {count} losses not to be finite"
            allowed = several if count > 1 else "a finite loss"
            self._notices.once(
                "failed",
                f"{outcome.stage}, validation after step {outcome.step}: expected {allowed}, got "
                f"{failed if count > 1 else value}. Such a validation chooses no weights; if all are so, "
                "the last weights are kept. Mend the box or the validation data, or bound what the network "
                "sends it, as by a sigmoid.",
                ProblemWarning,
            )
        if outcome.step == 0:
            outcome.first_validation = value if math.isfinite(value) else None
        if isinstance(losses, WindowLosses):
            best = losses.keep_last(self._best_rows)
            if best and (self._best_rows is None or rows.median() < self._best_rows.median()):
                self._best_rows = rows
        elif best := lower(rows, self._best_rows):
            self._best_rows = with_best(self._best_rows, rows)
        if best:
            outcome.best_validation, outcome.best_step, outcome.best_failed = value, outcome.step, failed
            # a copy: state_dict() gives the weights themselves, which the next step changes
            self._best = copy.deepcopy(self._state[self._model].state_dict())
        return value

    def finish(self) -> None:
        """Load the best weights into the model and mark the stage as done."""
        if self._best is not None:
            self._state[self._model].load_state_dict(self._best)
            self._best = None
        self.save(finished=True)

    def save(self, *, finished: bool = False, pending: bool = False) -> None:
        """Write the checkpoint.

        Args:
            finished: whether the stage is.
            pending: whether the validation after this step is still to be made.

        Raises:
            StorageError: the disk did not take it; the one before is as it was.
        """
        step, started = self.outcome.step, self._pace.now()
        content = {
            "format": _FORMAT,
            "finished": finished,
            "pending": pending,
            "steps": self._steps,
            "settings": self._run.config,
            "outcome": self.outcome.state_dict(),
            "state": {name: part.state_dict() for name, part in self._state.items()},
            "best": self._best,
            "best_rows": self._best_rows,
            "rng": torch.get_rng_state(),
            "rng_of_gpu": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            "versions": self._versions,
            "code": stamp.code(self._run),
        }
        with writing(f"the checkpoint of {self.outcome.stage} after step {step}", self._last_good):
            metrics_file.sync(self._run.path)
            self._path.parent.mkdir(exist_ok=True)
            state = self._windows.put(content["state"], finished=finished)
            checkpoint.save(self._path, {**content, "state": state})
            self._saved = step  # whatever becomes of what is written beside it
            self._torn.unlink(missing_ok=True)
            self.torn = False
            self._windows.tidy()
            if group.rank() == 0:
                row_counts.keep_sizes(self._run.path)
        self._pace.wrote(started)

    @property
    def due(self) -> bool:
        """True if a checkpoint is worth its time, whatever the number of the step; see `Pace`."""
        return self._pace.due

    def restore(self) -> bool:
        """Load the checkpoint, if there is one; says whether the stage is finished.

        Raises:
            CheckpointError: it is damaged, or of other settings or parts.

        Warns:
            CheckpointWarning: it was made with other versions.
        """
        stage = self.outcome.stage
        for path in atomic.leftovers(self._path.parent, f"{self._path.name}."):
            path.unlink(missing_ok=True)  # a process was killed while it wrote
        self.torn = self._torn.exists()
        if not self._path.exists():
            self._run.truncate_metrics(stage, -1)
            return False
        try:
            content = checkpoint.load(self._path)
            if isinstance(content.get("state"), dict):
                content["state"] = self._windows.take(content["state"])
                with suppress(OSError):  # of a disk that is only read
                    self._windows.tidy()  # a process was killed right behind the checkpoint
        except CheckpointError as error:
            raise CheckpointError(
                f"{stage}: {error} Look after that disk; delete {self._path} to train this stage anew."
            ) from error
        try:
            return self._take(content)
        except (KeyError, TypeError, AttributeError, NotImplementedError) as error:
            raise CheckpointError(
                f"{self._path}: expected a checkpoint of {stage}, got a file without its parts "
                f"({type(error).__name__}: {error}). Delete it to train this stage anew."
            ) from error

    def _take(self, content: Mapping[str, Any]) -> bool:
        """Go on from what a checkpoint holds; says whether the stage is finished."""
        stage = self.outcome.stage
        for name, kind in _PARTS.items():
            if not isinstance(content[name], kind):
                raise TypeError(f"{name} is a {type(content[name]).__name__}")
        mend = f"The settings or the code changed since; delete {self._path} to train this stage anew."
        for name, expected in (("format", _FORMAT), ("steps", self._steps)):
            if content.get(name) != expected:
                raise CheckpointError(
                    f"{stage}, checkpoint: expected {name} {expected}, got {content.get(name)!r}. {mend}"
                )
        self._refuse_other_settings(content["settings"])
        if content["state"].keys() != self._state.keys():
            raise CheckpointError(
                f"{stage}, checkpoint: expected the states {sorted(self._state)}, "
                f"got {sorted(content['state'])}. {mend}"
            )
        for name, part in self._state.items():
            try:
                part.load_state_dict(content["state"][name])
            except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{stage}, checkpoint: expected a state that fits {name!r}, got: "
                    f"{str(error).rstrip('.')}. {mend}"
                ) from error
        self.outcome = TrainingOutcome.of(content["outcome"])
        self._best, self._best_rows = content["best"], content["best_rows"]
        torch.set_rng_state(content["rng"])
        if content.get("rng_of_gpu") is not None and torch.cuda.is_available():  # of dropout there
            torch.cuda.set_rng_state(content["rng_of_gpu"])
        self.restored, self._saved = True, self.outcome.step
        self.pending = content.get("pending", False)
        self._run.here.notes.step = self.outcome.step
        self._pace.begin()
        self._note_lost(content["finished"])
        if not content["finished"]:
            self._forget_validations_by(content.get("code"))
            self._run.truncate_metrics(stage, self.outcome.step, judged=not self.pending)
            self._warn_of_versions(content["versions"])
        return content["finished"]

    def _forget_validations_by(self, code: str | None) -> None:
        """Compare later validations with none by other code, whose objective may have another size."""
        outcome = self.outcome
        if code in (None, stamp.code(self._run)) or self._best is None:
            return
        warn(
            f"{outcome.stage}: validations up to step {outcome.step} were by other code, not compared "
            "with later ones: the weights of the best from here on are kept.",
            CheckpointWarning,
        )
        self._best = self._best_rows = outcome.best_step = outcome.best_validation = None
        outcome.best_failed = 0

    def _note_lost(self, finished: bool) -> None:
        """Say what was there with the checkpoint and is no more: metrics, notes of rows."""
        stage, step = self.outcome.stage, self.outcome.step
        findings = []
        missing = "" if finished else reading.gaps(self._run.metrics(stage), step)
        if missing:
            findings.append(f"metrics.jsonl has no line of {missing}, so that curves will be without")
        if group.rank() == 0 and row_counts.note_lost(self._run.path):
            findings.append(
                "notes of rows in calls/ are gone, so that the rows in all are a bound from here on"
            )
        if findings:
            warn(
                f"{stage}: expected all files that the checkpoint after step {step} left, but "
                f"{', and '.join(findings)}. Put them back, if you have them.",
                CheckpointWarning,
            )

    @property
    def saved(self) -> bool:
        """True if it has a checkpoint."""
        return self._path.exists()

    @property
    def covered(self) -> bool:
        """True if the checkpoint has the step at hand."""
        return self._saved == self.outcome.step

    @property
    def nothing_since_saved(self) -> bool:
        """True if a resumed run would be where this one is: just after a checkpoint, or at the start."""
        return self.covered or (self._saved is None and self.outcome.step == 0)

    def note_torn(self) -> None:
        """Note that work is left out for its failed rows: where they fail again, they do so by themselves."""
        with suppress(OSError):  # of a full disk: the next process may then go back once more
            self._torn.touch()

    def interrupted(self, *, inside: bool = False, torn: bool = False) -> Interrupted:
        """The sentence that the user reads.

        Args:
            inside: whether it is in the middle of a step, whose finished queries are kept.
            torn: whether rows failed meanwhile, so that the last checkpoint counts.
        """
        stage, step = self.outcome.stage, self.outcome.step
        if inside:
            return Interrupted(
                f"Stopped in step {step + 1} of {self.steps} of {stage}; its queries so far are kept."
            )
        if torn:
            return Interrupted(
                f"Stopped after step {step} of {self.steps} of {stage}. Rows failed meanwhile, perhaps by "
                f"the same signal: they are asked again, from the last checkpoint (step {self._saved or 0})."
            )
        return Interrupted(f"Stopped at step {step} of {self.steps} of {stage}.")

    def log(self, **values: float) -> None:
        """Add a line to the run's metrics.

        Raises:
            StorageError: the disk did not take it.
        """
        outcome = self.outcome
        values = {**values, "seconds": round(outcome.seconds, 3)}
        with writing(f"the metrics of {outcome.stage}, step {outcome.step}", self._last_good):
            self._run.log(outcome.stage, outcome.step, **values)

    def _last_good(self) -> str:
        if self._saved is None:
            return f"There is no checkpoint of {self.outcome.stage} yet: it starts anew."
        return f"The last good state is that after step {self._saved} of {self.steps}."

    def _refuse_other_settings(self, before: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of other settings: the result would claim the new ones throughout."""
        changes = differences(before, {**self._run.config, **{name: before.get(name) for name in HARMLESS}})
        if changes:
            raise CheckpointError(
                f"{self.outcome.stage}, checkpoint: expected the settings that it was made with, got others: "
                f"{changes}. Put them back in {self._run.path / 'config.json'}, or start a new run."
            )

    def _warn_of_versions(self, before: Mapping[str, str]) -> None:
        changed = changes(before, self._versions)
        if changed:
            warn(
                f"{self.outcome.stage}: expected the versions that the checkpoint was made with, got "
                f"{changed}. Training goes on, but not to the same bits as with those.",
                CheckpointWarning,
            )
