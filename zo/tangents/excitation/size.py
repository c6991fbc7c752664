"""The size of a dither: the response of rows that were dithered, and the next size.

The response should be a fifth of the outputs' change; once the tangent knows it, the dither grows no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zo.tangents.excitation.dither import Prediction
from zo.tangents.excitation.gain import BEYOND, Gain
from zo.tangents.excitation.gain_form import given
from zo.tangents.models.values import Form
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.tangent import sources

# decision 121, this and the next:
BEGUN = 0.2  # of how much the outputs change: what the response to a dither should be, until it is known,
UNSEEN = 0.5  # the same of what it may be, where it does not stand out of chance; decision 138
KNOWN = 0.5  # of the predicted response: what must be there, beyond chance, for it to be known
# decision 147: so many rows, and of their square so little left, show a response before its next size is due
SHOWN, FORETOLD = 6, 0.2
ENOUGH, MOST = 8, 128  # rows for each number that is dithered, and rows, by which the next size is chosen
OF_FIELDS = 32  # rows, where a response is the same around all cells; decision 121


class NextSize(NamedTuple):
    """The size of the next dither, and the known share of the response.

    Attributes:
        known: The share of the predicted response that answers show, from 0 to 1.
        times: How many times as large the next dither should be.
        response: The sum of the squares of the responses; 0 where it is not distinguishable from chance.
        change: The sum of the squares of the outputs' changes.
    """

    known: float
    times: float
    response: float
    change: float


class DitheredRows(NamedTuple):
    """Rows with dither, in units of usual responses.

    Attributes:
        added: `(rows, numbers)`, the dither in its own deviation.
        missed: `(rows, size_out)`, the answers less those predicted without the dither.
        response: `(rows, size_out)`, the response to it that was predicted.
        change: `(rows,)`, the square of how much the outputs change.
        by_gain: `(rows, 2)`, the square of the response by the gain, and what chance makes of it; no columns
            where there is none.
        on_grid: whether that is a gain around each cell of a grid.
    """

    added: Tensor
    missed: Tensor
    response: Tensor
    change: Tensor
    by_gain: Tensor
    on_grid: bool = False

    @classmethod
    def of(
        cls, calls: Sequence[tuple[RecordedCall, CallPairs, Prediction]], gain: Gain | None
    ) -> DitheredRows:
        """Collect the calls of one box, each with its pairs and its prediction."""
        columns: list[tuple[Tensor, ...]] = []
        short = reciprocal(calls[0][1].response_scale.double())
        for call, pairs, prediction in calls:
            rows = pairs.alive.nonzero().flatten()
            parts = [part.reshape(len(pairs.z), -1) for part in call.added if part is not None]
            y = pairs.y[rows].double()
            advance = torch.zeros_like(y)
            if any(place is not None for place in sources(pairs.inputs, pairs.outputs)):
                advance = y - Form(pairs.inputs, pairs.outputs, ()).followed(pairs.z)[rows].double()
            dither, inputs = prediction.dither[rows].double(), given(prediction.here)[rows].double()
            squares = gain.squares(dither, inputs) if gain else ()
            by_gain = [y[:, :0], *((square @ short.square())[:, None] for square in squares)]
            response, missed = prediction.response[rows].double(), y - prediction.values[rows].double()
            dither = torch.cat(parts, dim=1)[rows].double()
            columns.append((dither, missed, response, y, advance, torch.cat(by_gain, dim=1)))
        dither, miss, response, y, advance, by_gain = (
            torch.cat(parts) for parts in zip(*columns, strict=True)
        )
        squares = [(c * short).square().sum(dim=1) for c in (y - y.mean(dim=0), advance)]
        change = min(
            (one for one in squares if bool(one.any())),
            key=lambda one: float(one.sum()),
            default=torch.full_like(squares[0], float(y.shape[1])),  # a row alone: as large as is usual
        )
        deviation = dither.square().mean(dim=0).sqrt()
        numbers = deviation.nonzero().flatten()
        dither = dither[:, numbers] / deviation[numbers]
        on_grid = gain is not None and bool(gain.form.space)
        return cls(dither, miss * short, response * short, change, by_gain, on_grid)

    def joined(self, other: DitheredRows) -> DitheredRows:
        """Return these rows and others; the others alone where other numbers are dithered."""
        (*old, _), (*new, on_grid) = self, other
        if any(one.shape[1:] != another.shape[1:] for one, another in zip(old, new, strict=True)):
            return other
        return DitheredRows(*map(torch.cat, zip(old, new, strict=True)), on_grid)  # pyright: ignore

    def known_by_now(self) -> bool:
        """Say whether most of the later half of the rows, before which more was learned, was foretold.

        By so few rows chance foretells half of a response; hardly ever four fifths of its square.
        """
        middle = len(self.missed) // 2
        missed, response = self.missed[middle:], self.response[middle:]
        return len(missed) >= SHOWN and bool(
            (missed - response).square().sum() < FORETOLD * missed.square().sum()
        )

    def verdict(self) -> NextSize:
        """Judge the known share of the response, and the size of the next dither.

        Until the model knows the response, a regression of answers on the dither gives its size; nothing else
        is correlated with the dither. The share of chance is left in, so that the size is never too small.
        """
        change, without = float(self.change.sum()), float(self.missed.square().sum())
        error = float((self.missed - self.response).square().sum())
        square = float(self.response.square().sum())
        products = (self.missed * self.response).sum(dim=1)
        chance = math.sqrt(without * square / len(products))  # of their sum, where nothing is known;
        if self.on_grid:  # there a row is many numbers
            chance = float(products.square().sum().sqrt())
        share = (float(products.sum()) - chance) / square if square > 0 else 0.0
        clear = float(products.sum()) > BEYOND * chance
        share = min(max(share, 0.0), 1.0) if clear and math.isfinite(share) else 0.0
        if not math.isfinite(without) or not without or not change:
            return NextSize(0.0, 1.0, 0.0, change)
        if share > KNOWN and error < without:
            response = share * square
            return NextSize(share, min(1.0, BEGUN * math.sqrt(change / response)), response, change)
        response, chance = self._regressed()
        response = max(response - chance, 0.0)
        standing = response if response > 2 * chance else 0.0
        target = (BEGUN if standing else UNSEEN) ** 2 * change
        shown = response + chance  # zero where boxes gave the very same answers at other inputs
        times = math.sqrt(target / shown) if shown else math.inf
        if times < 1.0:  # by chance alone none is made smaller
            times = min(1.0, math.sqrt(target / standing)) if standing else 1.0
        return NextSize(share, times, standing, change)

    def _regressed(self) -> tuple[float, float]:
        """The response by regression of answers on the dither, and what chance makes of it in the mean."""
        if self.by_gain.shape[1]:
            response, chance = self.by_gain.sum(dim=0).tolist()
            return response, chance
        rows, without = len(self.added), float(self.missed.square().sum())
        slope = self.added.T @ self.missed / rows
        return rows * float(slope.square().sum()), self.added.shape[1] / rows * without
