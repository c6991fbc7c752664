"""`ModelSteps`: steps of a network through the tangents' values alone, and the batches that they take."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from blackbox.notices import Notice, Notices
from zo.batches import Batch, count_rows, joined_batches
from zo.errors import ObjectiveError, TangentError, TangentWarning
from zo.tangents.gradient import TangentGradient
from zo.tangents.playback.by_models import unasked
from zo.tangents.population.members import TINY
from zo.tangents.population.updates import ROWS

JUDGED = 64  # rows at least whose losses are foretold before the steps and behind them; decision 248


class ModelSteps:
    """Trains a network through the tangents of its boxes alone, for no row.

    Gradients are scaled to length one: early ones may be a thousand times as long.

    Args:
        gradient: The gradient whose tangents answer.
        optimizer: The optimiser of the network's weights.
        fresh: A function that gives batch k for any k from 0 and asks no box; None for rows of the recorded
            windows.

    Attributes:
        taken: The number of steps so far.
    """

    def __init__(
        self,
        gradient: TangentGradient,
        optimizer: torch.optim.Optimizer,
        fresh: Callable[[int], Batch] | None,
    ) -> None:
        self._gradient, self._optimizer, self._fresh = gradient, optimizer, fresh
        self._notices, self.taken = Notices(), 0

    def take(self, count: int, rows: int) -> float:
        """Take steps, at a rate that falls from the optimiser's to zero.

        Args:
            count: The number of steps.
            rows: The number of rows in each.

        Returns:
            How far the losses of the first rows rise by the steps, as tangents foretell: the logarithm of a
            factor, in the mean.

        Raises:
            NoValuesError: A tangent has no values.
            TangentError: `fresh` asks a box.
        """
        gradient, optimizer, start = self._gradient, self._optimizer, self.taken
        rates = [group["lr"] for group in optimizer.param_groups]
        tensors = gradient.parameters.tensors
        first = self._first(start, rows)
        judged = joined_batches(first) if first else None
        try:
            before = self._level(judged)
            for number in range(count):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / count))
                optimizer.zero_grad()
                batch = first[number] if number < len(first) else self._batch(start + number, rows)
                if batch is None:
                    break
                with torch.enable_grad():  # of the member's own weights alone: others may have a `.grad` too
                    gradient.through(batch).mean().backward(inputs=list(tensors))
                self.taken += 1
                gradients = [weight.grad for weight in tensors if weight.grad is not None]
                length = float(torch.nn.utils.get_total_norm(gradients))
                if 0.0 < length < math.inf:  # early ones may be a thousand times as long
                    for of_weight in gradients:
                        of_weight.div_(length)
                    optimizer.step()
            return self._level(judged) - before
        finally:
            optimizer.zero_grad()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    @torch.no_grad()
    def _level(self, batch: Batch | None) -> float:
        """The mean logarithm of the losses of a batch's rows, as tangents foretell them; 0 of none."""
        if batch is None:
            return 0.0
        losses = self._gradient.through(batch).double().nan_to_num(nan=math.inf, posinf=math.inf)
        return float(losses.clamp(min=TINY).log().mean())

    def _first(self, start: int, rows: int) -> list[Batch]:
        """The first batches of some steps, so many that they have 64 rows together."""
        batches: list[Batch] = []
        count = 0
        while count < JUDGED:
            batch = self._batch(start + len(batches), rows)
            if batch is None:
                break
            batches.append(batch)
            count += max(1, count_rows(batch))
        return batches

    def _batch(self, place: int, rows: int) -> Batch | None:
        """Make the batch of a step; None, with a warning, where none can be drawn."""
        return self._recorded(place, rows) if self._fresh is None else self._given(place, rows)

    def _given(self, place: int, rows: int) -> Batch:
        """Make a fresh batch, of several where it has many rows, and refuse calls of boxes meanwhile."""
        assert self._fresh is not None
        with unasked("Population, fresh"):
            if rows == ROWS:
                return self._fresh(place)
            batches, count = [], 0
            while count < rows:
                batches.append(self._fresh(place * rows + len(batches)))
                count += max(1, count_rows(batches[-1]))
        return joined_batches(batches)

    def _recorded(self, place: int, rows: int) -> Batch | None:
        """Rows of the recorded windows; None, with a warning, where none can be drawn."""
        try:
            return self._gradient.recorded(rows, place)
        except (TangentError, ObjectiveError) as error:
            words = (
                f"Population: the surrogate rests, since no rows of recorded batches can be drawn: {error} "
            )
            self._notices.say(Notice("rests", f"{words}Or give it batches (fresh).", TangentWarning))
            return None
