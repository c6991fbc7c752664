"""`Data`: what a network is trained, chosen and judged by; and how the objective is asked about a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.checks import check_count
from blackbox.words import counted
from tasks.errors import ConfigurationError, ProblemError
from zo.batches import count_rows, map_tensors
from zo.estimators import Key
from zo.objective import described_result


@dataclass(frozen=True)
class Data:
    """What a network is trained, chosen and judged by.

    Attributes:
        train: `train(seed, step)` gives the batch of a step, the same whenever it is asked: any nesting of
            tensors that have their rows first. Draw with `zo.estimators.Key(seed, step).generator()`.
        validation: A batch by which weights are chosen; None to keep the last weights.
        test: A batch for the last line; None where `evaluate` has its own.
    """

    train: Callable[[int, int], Any]
    validation: Any = None
    test: Any = None

    def __post_init__(self) -> None:
        """Refuse batches in the place of what gives them."""
        if not callable(self.train):
            raise ProblemError(
                f"Data, train: expected a function of (seed, step) that gives a batch, got a "
                f"{type(self.train).__name__}. For rows that are there already take tasks.Data.split."
            )

    def to(self, device: str) -> Data:
        """The same, with its batches on a device."""

        def moved(batch: Any) -> Any:  # noqa: ANN401
            return map_tensors(lambda tensor: tensor.to(device), batch)

        def train(seed: int, step: int) -> Any:  # noqa: ANN401
            return moved(self.train(seed, step))

        return replace(self, train=train, validation=moved(self.validation), test=moved(self.test))

    @classmethod
    def split(cls, rows: Any, *, batch: int, validation: int = 0, test: int = 0) -> Data:  # noqa: ANN401
        """Rows that are there from the start: the last ones are held out, the others drawn with replacement.

        Args:
            rows: Any nesting of tensors that have their rows first.
            batch: Rows in a step.
            validation: How many rows to hold out to choose weights by.
            test: How many to hold out for the last line.

        Raises:
            ConfigurationError: Fewer than one row, or fewer than a batch, is left to train on; or another
                number is out of its range.
        """
        for name, value, least in (("batch", batch, 1), ("validation", validation, 0), ("test", test, 0)):
            check_count("Data.split", name, value, least)
        count = count_rows(rows)
        left = count - validation - test
        if left < 1:
            raise ConfigurationError(
                f"Data.split: expected more than the {validation} + {test} rows held out, got {count:,}. "
                "Hold fewer out, or give more rows."
            )
        if batch > left:  # most of its rows would be there several times
            raise ConfigurationError(
                f"Data.split, batch: expected at most the {counted(left, 'row')} to train on, got {batch:,}. "
                "Lower it (--batch, in Python batch=...), or hold out fewer rows."
            )

        def part(index: Tensor | slice) -> Any:  # noqa: ANN401
            return map_tensors(lambda tensor: tensor[index], rows)

        def train(seed: int, step: int) -> Any:  # noqa: ANN401
            generator = Key(seed, step).generator()
            return part(torch.randint(left, (batch,), generator=generator))

        held_out = part(slice(left, left + validation)) if validation else None
        return cls(train, held_out, part(slice(left + validation, count)) if test else None)


def one_each(losses: Tensor, batch: Any) -> Tensor:  # noqa: ANN401
    """The losses of a batch, `(rows,)`, as they are.

    Raises:
        ProblemError: They are of another shape.
    """
    rows = count_rows(batch)
    if not isinstance(losses, Tensor) or losses.shape != (rows,) or not losses.is_floating_point():
        raise ProblemError(
            f"objective: expected one loss for each of {counted(rows, 'row')}, got {described_result(losses)}"
        )
    return losses


def parts(batch: Any, rows: int) -> Iterator[Any]:  # noqa: ANN401
    """A batch cut into parts of at most so many rows."""
    for start in range(0, count_rows(batch), rows):
        yield map_tensors(lambda tensor, at=start: tensor[at : at + rows], batch)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A block in which a network is in evaluation mode; its modules' modes are put back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
