"""A program with a trained network: `serve` runs it where the user is, and answers its calls to its end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blackbox.adapters.command.process import Running
from blackbox.adapters.hosted.boxes import given_arrays
from blackbox.adapters.hosted.program import Program, Start
from blackbox.adapters.hosted.program_call import ENDED, Call, VectorForm, numbers_in
from blackbox.errors import ConfigurationError, RowFailedError


def serve(
    arguments: Sequence[str],
    calls: Sequence[Call],
    networks: Mapping[str, Callable[..., Any]],
    *,
    dtype: torch.dtype | None = None,
) -> int:
    """Run a program in this process's folder, with its input and output, and answer its calls.

    Args:
        arguments: the program and its arguments.
        calls: the calls of the program.
        networks: the network of each call, by its name, as in `Hosted.run`.
        dtype: the dtype of arrays whose spec leaves it open; None for that of the network's weights.

    Returns:
        The number of answered calls.

    Raises:
        ConfigurationError: there is no such program, or a call has no network.
        RowFailedError: the program ended with another status than 0, or made a call that is not expected.
    """
    words = [*arguments]
    executable = shutil.which(words[0]) if words else None
    if executable is None:
        raise ConfigurationError(
            f"serve: expected a program that can be run, got {words[0] if words else 'none'!r}. Give its "
            "path from the working directory; in a shell behind --, such as -- ./ocean case.nml."
        )
    form = VectorForm(calls, ())
    if missing := [name for name in form.calls if name not in networks]:
        raise ConfigurationError(
            f"serve: expected a network for each call, got none for {', '.join(missing)}."
        )
    most = max(numbers_in(specs) for call in calls for specs in (call.seen, call.given))
    start = Start([str(Path(executable).absolute()), *words[1:]], dict(os.environ), kind=_InTheForeground)
    program, answered = Program(form, start, None, 8 * most, None, False), 0
    try:
        with torch.no_grad():
            while int((vector := _read(program))[0]) != ENDED:
                name, _ = form.kinds[int(vector[0])]
                call = form.calls[name]
                arrays_seen = [torch.from_numpy(slot.of(vector))[None] for slot in form.seen[name]]
                arrays_seen = [
                    array.to(dtype or _dtype_of(networks[name])) if spec.dtype is None else array
                    for array, spec in zip(arrays_seen, call.seen, strict=True)
                ]
                answer = given_arrays(f"{name!r}", call.given, networks[name](*arrays_seen), 1)
                program.answer(np.concatenate([part.double().cpu().numpy().ravel() for part in answer]))
                answered += 1
    finally:
        program.end()
    return answered


def _dtype_of(network: Callable[..., Any]) -> torch.dtype:
    weights = network.parameters() if isinstance(network, torch.nn.Module) else ()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


def _read(program: Program) -> np.ndarray[Any, Any]:
    try:
        return program.read()
    except Exception as error:
        raise RowFailedError(f"serve: {error}. Mend the program, or its arguments.") from error


class _InTheForeground(Running):
    """A program that runs where this process does, with its input and output: a user is looking at it."""

    def _started(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: bool
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(arguments, env=environment)

    def last_words(self, folder: Path) -> str:
        """Nothing: the user has seen them."""
        return ""

    def kill(self) -> None:
        """Kill the program."""
        if self._process.poll() is None:
            self._process.kill()
