"""The training loop of every method of every task: it validates, keeps the best weights, and resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from tasks.errors import ConfigurationError
from tasks.interruption import StopRequest
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.stage import Stage, Stateful, TrainingOutcome

__all__ = ["Stateful", "TrainingOutcome", "train"]


def train(
    run: Run,
    stage: str,
    *,
    steps: int,
    step: Callable[[int], Mapping[str, float]],
    state: Mapping[str, Stateful],
    model: str,
    validate: Callable[[], float] | None = None,
    validate_every: int = 10,
    checkpoint_every: int = 10,
    progress: Progress,
) -> TrainingOutcome:
    """Train a stage of a run to its end, from wherever it was left.

    A stage that was finished before is loaded, not trained. One that was cut short goes on from its
    last checkpoint to the bits that it would have had without the break, as long as `step` and
    `validate` draw from nothing but torch's global CPU generator and generators that they key by
    (seed, step). In `metrics.jsonl` step k means: after k optimiser steps.

    Args:
        run: where metrics and checkpoints go.
        stage: name of the stage in the run: "seed-0/zo-sol".
        steps: optimiser steps of the whole stage.
        step: does optimiser step i (from 0) and returns its metrics, `loss` among them; `queries`
            and `rows`, cumulative, are shown as progress.
        state: everything that a step changes, by name.
        model: the entry of `state` whose best weights are kept.
        validate: figure of merit on validation data, lower is better; called before the first step,
            every `validate_every` steps and at the end. The weights of the lowest finite one are
            loaded into the model at the end. None: the last weights are kept.
        validate_every: optimiser steps between validations.
        checkpoint_every: optimiser steps between checkpoints.
        progress: what the user sees.

    Raises:
        NonFiniteLossError: a step's loss was NaN or infinite.
        Interrupted: Ctrl-C or SIGTERM; the step at hand was finished and a checkpoint written.
        CheckpointError: the stage's checkpoint cannot be read or does not fit `state`.
    """
    if steps < 1 or validate_every < 1 or checkpoint_every < 1:
        raise ConfigurationError(
            f"{stage}: expected steps, validate_every and checkpoint_every of at least 1, got "
            f"{steps}, {validate_every} and {checkpoint_every}. Correct the configuration."
        )
    if model not in state:
        raise ConfigurationError(f"{stage}: expected model to be one of {sorted(state)}, got {model!r}.")
    loop = Stage(run, stage, steps, state, model)
    if loop.restore():
        return loop.outcome
    outcome = loop.outcome
    progress.begin(stage, steps, done=outcome.step)
    try:
        with StopRequest() as stop:
            if validate is not None and not loop.restored:
                loop.validated(validate())
            while outcome.step < steps:
                if stop.requested:
                    loop.save()
                    raise loop.interrupted()
                started = perf_counter()
                metrics = step(outcome.step)
                loop.stepped(metrics, perf_counter() - started)
                progress.update(outcome.step, outcome.metrics)
                last = outcome.step == steps
                if validate is not None and (last or outcome.step % validate_every == 0):
                    loop.validated(validate())
                if not last and outcome.step % checkpoint_every == 0:
                    loop.save()
            loop.finish()
            if stop.requested:
                raise loop.interrupted()
    finally:
        progress.end()
    return outcome
