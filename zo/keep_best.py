"""`KeepBest`: keeps the weights with the least loss on other data, through the boxes themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.checks import check_count
from blackbox.errors import BudgetError
from blackbox.notices import warn
from blackbox.outside import exactly
from zo.errors import ConfigurationError, KeepBestWarning
from zo.evaluators.state import Snapshot

FEW = 0.1  # of the rows that may fail, for the rest to decide; decision 34


def lower(rows: Tensor, bests: Tensor | None) -> bool:
    """Say whether held-out losses are below each best so far, in the mean over the rows that both have.

    Lower than the last one is not enough: where other rows fail each time, a third can be lower than the
    second, the second lower than the first, and the first lower than the third.

    Args:
        rows: The held-out losses, `(rows,)`; not finite where a row failed. With more than a tenth of such
            rows the losses are not lower.
        bests: The bests of the same rows, `(bests, rows)`, see `with_best`; None for none yet.

    Raises:
        ConfigurationError: The losses are of another number of rows.
    """
    finite = rows.isfinite()
    if not len(rows) or int((~finite).sum()) > FEW * len(rows):
        return False
    if bests is None:
        return True
    if len(rows) != bests.shape[-1]:
        raise ConfigurationError(
            f"validate: expected the losses of the same {bests.shape[-1]} rows each time, got {len(rows)}. "
            "Validate on a fixed set, or give the mean."
        )
    both = [(best, finite & best.isfinite()) for best in torch.atleast_2d(bests)]
    return all(bool(rows[mask].mean() < best[mask].mean()) for best, mask in both)


def with_best(bests: Tensor | None, rows: Tensor) -> Tensor:
    """The bests with a new one behind them; without those before it where none of its rows failed."""
    if bests is None or rows.isfinite().all():
        return rows.unsqueeze(0)
    return torch.cat([torch.atleast_2d(bests), rows.unsqueeze(0)])


class KeepBest:
    """Validates before the first step and every few steps, and remembers the best weights.

        held_out = zo.KeepBest(network, lambda: rollout_error(network, solver, validation), every=50)
        for batch in loader:
            if not held_out.before_step():
                break  # patience is at an end
            optimizer.zero_grad()
            gradient.backward(batch)
            optimizer.step()
        print(held_out.restore())

    An estimated gradient, or one through a model of a black box, can lower the loss that it sees and raise
    the one that counts. None of the gradient's own figures detects this reliably. Works with any gradient.

    A validation leaves buffers, modes and torch's generators unchanged, so training continues to the same
    bits with or without it. A loss that is not finite is never the best.

    The start is one of the candidates. Memory: a copy of the network's state.

    Args:
        network: its whole state is kept, including buffers.
        validate: returns the held-out loss, lower is better, or losses `(rows,)` of the same rows each time.
            It is called without a graph. It calls the boxes itself, and their ledgers count its rows.
        every: the number of steps between validations.
        patience: how many validations in a row without improvement end the training; None for no end.

    Attributes:
        step: optimiser steps done, counted by calls of `before_step`.
        best_step: steps done when validation was lowest; 0 for the start.
        best_validation: the loss of the best weights, the mean over its finite rows; None before there is
            one.
        not_finite: losses that were not finite in the last validation.

    Raises:
        ConfigurationError: a value is out of range, or the losses are of other rows than before.
    """

    def __init__(
        self,
        network: nn.Module,
        validate: Callable[[], float | Tensor],
        *,
        every: int = 50,
        patience: int | None = None,
    ) -> None:
        check_count("KeepBest", "every", every)
        if patience is not None:
            check_count("KeepBest", "patience", patience)
        if not callable(validate):
            raise ConfigurationError(
                f"KeepBest, validate: expected a function without arguments, got {validate!r}. "
                "Write lambda: error(network)."
            )
        self.network = network
        self.validate = validate
        self.every = every
        self.patience = patience
        self.step = 0
        self.best_step = 0
        self.best_validation: float | None = None
        self.not_finite = 0
        self._rows: Tensor | None = None  # the losses of the bests, one by one, the last one's at the end
        self._since = 0  # validations since the best
        self._last: int | None = None  # step of the last validation
        self._best: dict[str, Any] | None = None

    def before_step(self) -> bool:
        """Call this before each optimiser step. It validates if it is time to.

        Returns:
            Whether to continue; False once patience is exhausted.
        """
        if self.step % self.every == 0:
            self._validate()
        if self.patience is not None and self._since >= self.patience:
            return False
        self.step += 1
        return True

    def restore(self) -> str:
        """Validate the current weights, unless that was done, and restore the best ones.

        If no rows are left for that, the best of the weights that were validated before come back.

        Returns:
            A sentence that says which they are.

        Warns:
            KeepBestWarning: the weights of the start are the best, because none were better.
        """
        unjudged = ""
        try:
            self._validate()
        except BudgetError:
            if self._best is None:
                raise
            unjudged = f" The weights of step {self.step} were not judged: no row was left for that."
        assert self._best is not None  # the start at least
        self.network.load_state_dict(self._best)
        rows = torch.empty(0) if self._rows is None else self._rows[-1]
        failed = int((~rows.isfinite()).sum())
        but = f", {failed} of {len(rows)} rows not finite" if failed else ""
        if self.best_step:
            return (
                f"Kept the weights of step {self.best_step} of {self.step}, held-out loss "
                f"{self.best_validation:.4g}{but}.{unjudged}"
            )
        start = (
            "none was finite" if self.best_validation is None else f"it has {self.best_validation:.4g}{but}"
        )
        words = (
            f"KeepBest: expected {self.step} steps to lower the held-out loss of the start, {start} and none "
            "since was lower; the start's weights are put back. Take smaller steps, a gradient nearer to the "
            f"true one (more queries, or another tangent), or validate more often.{unjudged}"
        )
        if self.step:
            warn(words, KeepBestWarning)
        return words

    def state_dict(self) -> dict[str, Any]:
        """The best weights and their step; a resumed run continues from there."""
        return {
            "step": self.step,
            "best_step": self.best_step,
            "best_validation": self.best_validation,
            "rows": None if self._rows is None else self._rows.clone(),
            "not_finite": self.not_finite,
            "since": self._since,
            "last": self._last,
            "best": copy.deepcopy(self._best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_validation = state["best_validation"]
        self._rows = None if self.best_validation is None else state["rows"].cpu()
        self.not_finite = state["not_finite"]
        self._since, self._last = state["since"], state["last"]
        self._best = copy.deepcopy(state["best"])

    def _validate(self) -> None:
        """Take in the loss of the weights as they are, once for each step."""
        if self._last == self.step:
            return
        rows = self._losses()
        finite = rows.isfinite()
        self.not_finite = int((~finite).sum())
        better = lower(rows, self._rows)
        self._since = 0 if better or self._best is None else self._since + 1
        if better:
            self.best_validation, self.best_step = float(rows[finite].mean()), self.step
            self._rows = with_best(self._rows, rows)
        if better or self._best is None:
            # A copy: state_dict() gives the weights themselves, which the next step changes.
            self._best = copy.deepcopy(self.network.state_dict())
        self._last = self.step  # at the end: where `validate` raises, a further call asks it again

    def _losses(self) -> Tensor:
        """The held-out losses one by one, `(rows,)`, float64 on the CPU; of a single number just that."""
        snapshot, modes = Snapshot(self.network), [(m, m.training) for m in self.network.modules()]
        try:
            with torch.no_grad():
                result = self.validate()
                try:
                    return torch.from_numpy(exactly(result, "float64")).flatten()
                except (TypeError, ValueError, RuntimeError) as error:
                    raise ConfigurationError(
                        "KeepBest, validate: expected a function that returns a loss, or one for each row, "
                        f"got {'None. Does it end with `return`?' if result is None else repr(result)}"
                    ) from error
        finally:
            snapshot.restore()
            for module, training in modes:
                module.training = training
