"""Checkpoints: the file from which a sampling goes on to the bit, and the refusal of another sampling's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from zo.errors import ConfigurationError
from zo.posterior.target import Target
from zo.same_run import refuse_other_run

SOON, SHARE = 1.0, 20.0  # seconds between two writes at least, and times what a write takes
SAME, ALIKE = 1e-5, 1e-4  # relative, of what is given and of answers, which other batches round otherwise


class Checkpoint:
    """The file of a sampling. Without a path nothing is read or written."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:  # before a row is run, which could not be kept
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._due = 0.0

    def save(self, state: Mapping[str, Any], generator: torch.Generator, *, now: bool = True) -> None:
        """Write the state at once or not at all; without `now` only where enough work was done since."""
        if self._path is None or (not now and monotonic() < self._due):
            return
        began = monotonic()
        draws = state["draws"]
        stacked = {name: torch.stack([draw[name] for draw in draws]) for name in (draws[0] if draws else ())}
        # with the process's id, so that two processes with one file do not mix their bytes
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as stream:
            torch.save({**state, "draws": stacked, "generator": generator.get_state()}, stream)
            stream.flush()
            os.fsync(stream.fileno())  # without it a power cut may leave the name on an empty file
        os.replace(temporary, self._path)
        self._due = monotonic() + max(SOON, SHARE * (monotonic() - began))

    def load(self, settings: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any] | None:
        """The state, and the generator as it was; None where there is no file.

        Args:
            settings: the settings by name, which must equal the state's; a None leaves one to the state.
            generator: the generator of the sampling.

        Raises:
            ConfigurationError: the file is no checkpoint of a sampling, or one of other settings.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            state = torch.load(self._path, weights_only=True)
            saved, stacked = state["settings"], state["draws"]
            generator.set_state(state.pop("generator"))
        except Exception as error:  # torch.load raises of every kind where a file is cut or another's
            raise ConfigurationError(
                f"sample, checkpoint: expected one that zo.sample wrote in {self._path}, got a file that "
                f"cannot be read as one ({type(error).__name__}). Give another file, or delete this one."
            ) from error
        settings_given = {name: value for name, value in settings.items() if value is not None}
        refuse_other_run(f"sample, checkpoint {self._path}", settings_given, saved)
        state["draws"] = [
            dict(zip(stacked, values, strict=True)) for values in zip(*stacked.values(), strict=True)
        ]
        return state

    def refuse_other(
        self,
        state: Mapping[str, Any],
        target: Target,
        q: Tensor,
        twin: Callable[[Tensor], Tensor] | None,
        ask: bool,
    ) -> None:
        """Refuse a state that another start, potential, twin or box has left.

        Functions have no names that identify them, so their results are compared: potential and twin at the
        start, and the box's answer to the likeliest row of the start.

        Args:
            state: the loaded state.
            target: the target at hand.
            q: the start at hand, `(rows, size)`.
            twin: the twin at hand.
            ask: whether the box is asked, for one row; not where no more rows are wanted of it.

        Raises:
            ConfigurationError: one of them differs; the message names it.
        """
        answers = state["answers"][: len(q)]
        potential = state["at_start"]["potential"]
        begun = state["q"][: len(q)]
        if not (len(potential) == len(q) and torch.allclose(begun, q, rtol=SAME, atol=0)):
            self._refuse("start", "rows")
        if not _same_potential(target.potential(q, answers), potential):
            self._refuse("potential", "function and data")
        if not _same_twin(at(twin, target, q), state["at_start"]["twin"]):
            self._refuse("twin", "function")
        row = potential.argmin()[None]
        if ask and not same(target.answers(q[row]), answers[row]):
            self._refuse("box", "box")

    def _refuse(self, what: str, mend: str) -> None:
        raise ConfigurationError(
            f"sample, checkpoint: expected the {what} that {self._path} was begun with, got one that gives "
            f"other numbers. Give the same {mend} again, or another file."
        )


def at(twin: Callable[[Tensor], Tensor] | None, target: Target, q: Tensor) -> Tensor | None:
    """Return a twin's answers at rows within their bounds; None without a twin."""
    return None if twin is None else target.below(twin, q).detach()


def same(now: Tensor, begun: Tensor) -> bool:
    """Say whether answers are the same row by row but for rounding, in any unit; NaN is where NaN was."""
    finite = begun.isfinite()
    if now.shape != begun.shape or not torch.equal(finite, now.isfinite()):
        return False
    distance, size = (torch.where(finite, t, 0).reshape(len(t), -1).norm(dim=1) for t in (now - begun, begun))
    return bool((distance <= ALIKE * size).all())


def _same_potential(now: Tensor, begun: Tensor) -> bool:
    """Say whether potentials differ by less than a chain would see, also if both have a large constant."""
    finite = begun.isfinite()
    if not torch.equal(finite, now.isfinite()):
        return False
    now, begun = now[finite], begun[finite]
    limit = SAME * (1 + begun - begun.min()) + 1e-12 * begun.abs()
    return bool(((now - begun).abs() <= limit).all())


def _same_twin(now: Tensor | None, begun: Tensor | None) -> bool:
    if now is None or begun is None:
        return now is begun
    return same(now, begun)
