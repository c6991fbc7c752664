"""The network of a run that is not finished, from its last checkpoint: to look at while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tasks.errors import CheckpointError, ConfigurationError
from tasks.folder import checkpoint, under_way
from tasks.folder.run import Run, stage_name
from tasks.methods import by_name
from tasks.problem.problem import Problem
from tasks.rows.budget_parts import judges_by_windows
from tasks.running.resume import problem_of
from tasks.training.windows import Windows


class SoFar(NamedTuple):
    """The trained part of a run by now.

    Attributes:
        problem: The problem.
        network: The network, with the weights that a training which ended there would keep, see `weights`.
        method: The method that trains it.
        seed: The seed.
        step: The steps of the checkpoint; the weights may be of an earlier step.
        steps: The steps of the whole training.
    """

    problem: Problem
    network: nn.Module
    method: str
    seed: int
    step: int
    steps: int


def so_far(folder: Path, method: str | None = None, seed: int | None = None, *, trust: bool = False) -> SoFar:
    """Load the network of a run that is not finished, from its last checkpoint; the run is not changed.

    Args:
        folder: The folder of the run.
        method: The method; None for the last of the run's methods that has a checkpoint.
        seed: The seed; None for the first.
        trust: Whether to execute the code that the run names although it came from elsewhere.

    Raises:
        ConfigurationError: The run has no checkpoint of that method and seed yet, or the method trains
            something else than the problem's network.
        CheckpointError: The checkpoint is damaged, or of another network.
        TrustError: The run names code that is not trusted.
    """
    run = Run.open(folder)
    problem = problem_of(run, trusted=trust)
    methods, seed = list(by_name.methods_named(problem)), run.seeds[0] if seed is None else seed
    files = {
        name: checkpoint.of_stage(run.path, stage_name(seed, name))
        for name in (methods if method is None else [method])
    }
    begun = [name for name, file in files.items() if file.is_file()]
    if not begun:
        raise ConfigurationError(
            f"{run.path}: expected a checkpoint of {' or '.join(files)} with seed {seed}, got none yet. Wait "
            f"for the first, or name one of the run's methods and seeds: {', '.join(methods)}; "
            f"{', '.join(map(str, run.seeds))}."
        )
    name = begun[-1]
    network = problem.network()
    step, steps = load_into(network, run, problem, name, seed)
    return SoFar(problem, network, name, seed, step, steps)


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
