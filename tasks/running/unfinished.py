"""The weights of a training under way, from its last checkpoint: to look at while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tasks.errors import CheckpointError, ConfigurationError
from tasks.folder import checkpoint, under_way
from tasks.folder.run import Run, stage_name
from tasks.problem.problem import Problem
from tasks.rows.budget_parts import judges_by_windows
from tasks.training.windows import Windows


def load_into(network: nn.Module, run: Run, problem: Problem, name: str, seed: int) -> tuple[int, int]:
    """Load the weights of a training under way into a network of its problem, by its last checkpoint.

    Returns:
        The steps of the checkpoint, and of the whole training.

    Raises:
        ConfigurationError: The method trains something else than the problem's network.
        CheckpointError: The checkpoint is damaged, or of another network.
    """
    path = checkpoint.of_stage(run.path, stage_name(seed, name))
    content = checkpoint.load(path)
    try:
        trains_network = under_way.trains_network(content)
        if trains_network:
            network.load_state_dict(weights(content, judges_by_windows(problem, run.chosen)))
            return content["outcome"]["step"], under_way.steps_of(content)
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected weights of {type(network).__name__}, got others. {error}"
        ) from error
    raise ConfigurationError(
        f"{run.path}: expected a method that trains the problem's network, got {name}. Wait for the run's "
        "end."
    )


def weights(content: Mapping[str, Any], by_windows: bool) -> Any:
    """The weights that a training which ended with a checkpoint would keep, as far as no row is needed.

    Where windows validate, these are the last ones, or the best before if they speak against the last: what
    `Stage.finish` takes. Elsewhere they are the best in validation so far, or the last ones where there was
    none. Of a population all of these are the leader's.

    Args:
        content: The checkpoint.
        by_windows: Whether windows validate the training.
    """
    last, best = content["state"]["network"], content["best"]
    if best is not None and by_windows:
        windows = Windows()
        windows.load_state_dict(content["state"]["windows"])
        losses = windows.losses()
        if losses is not None and losses.keep_last(content["best_rows"]):
            return last
    return last if best is None else best
