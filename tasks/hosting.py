"""`blackbox host`: the files by which a program calls a network, and a program with a trained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from blackbox.adapters.hosted import Hosted
from blackbox.words import counted
from tasks.errors import ConfigurationError
from tasks.problem import Problem
from tasks.terminal import say


def serve(folder: Path, program: Sequence[str], method: str | None, seed: int | None, trust: bool) -> int:
    """Run a program whose calls the network of a finished run answers; 0, or an error.

    Raises:
        ConfigurationError: The run's problem has no `Hosted`, or its network answers not all calls.
        ProblemError: The problem's code is not at hand.
    """
    from blackbox.adapters.hosted.serve import serve as served
    from tasks.finished import load

    finished = load(folder, trust=trust)
    row = finished.result.table[-1]
    name = row.method if method is None else method
    first = finished.result.table[0].seed if seed is None else seed
    network = finished.network(name, first)
    problem = finished.problem
    assert problem is not None  # or there would be no network
    if not isinstance(problem.box, Hosted):
        raise ConfigurationError(
            f"{folder}: expected a run of a problem whose box is a Hosted, got {problem.box!r}. Only such a "
            "program calls its network."
        )
    network.eval()
    answered = served(program, problem.box.calls, networks_of(problem, network))
    say(f"{counted(answered, 'call')} answered by the network of {name}, seed {first}.")
    return 0


def networks_of(problem: Problem, network: nn.Module) -> Mapping[str, Callable[..., Any]]:
    """What answers each call of a problem's host: the network, or its parts of the calls' names.

    Raises:
        ConfigurationError: There are several calls, and the network has no parts of their names.
    """
    names = [call.name for call in problem.box.calls]
    if len(names) == 1:
        return {names[0]: network}
    parts = {name: getattr(network, name, None) for name in names}
    if missing := [name for name, part in parts.items() if not callable(part)]:
        raise ConfigurationError(
            f"{type(network).__name__}: expected a part for each of the calls {', '.join(names)}, such as "
            f"network.{missing[0]}, got none for {', '.join(missing)}."
        )
    return parts  # pyright: ignore[reportReturnType]
