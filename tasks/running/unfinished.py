"""The network of a run that is not finished, from its last checkpoint: to look at while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from tasks.errors import CheckpointError, ConfigurationError
from tasks.folder import checkpoint
from tasks.folder.run import Run, stage_name
from tasks.methods import by_name
from tasks.problem.problem import Problem
from tasks.running.resume import problem_of


class SoFar(NamedTuple):
    """The trained part of a run by now.

    Attributes:
        problem: The problem.
        network: The network, with the best weights in validation so far, or the last ones where nothing is
            validated.
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
    content = checkpoint.load(files[name])
    if "network" not in content["state"] or "judged" in content["state"]:
        raise ConfigurationError(
            f"{run.path}: expected a method that trains the problem's network, got {name}. Wait for "
            "the run's end."
        )
    network = problem.network()
    weights = content["state"]["network"] if content["best"] is None else content["best"]
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{files[name]}: expected weights of {type(network).__name__}, got others. {error}"
        ) from error
    return SoFar(problem, network, name, seed, content["outcome"]["step"], content["steps"])
