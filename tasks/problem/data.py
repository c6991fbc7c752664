"""`Data`: batches to train on, to choose by and to judge by; and the objective's losses of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from blackbox.checks import check_count
from blackbox.words import counted
from tasks.errors import ConfigurationError, ProblemError
from zo.batches import Batch, count_rows, map_tensors, tensors
from zo.estimators import Key
from zo.evaluators.versions import version_of
from zo.objective import described_result

HELD_OUT = 1_000_001  # the seed of held-out rows that are drawn: no run is expected to have it


@dataclass(frozen=True)
class Data:
    """The batches that a network is trained, chosen and judged by.

    Attributes:
        train: `train(seed, step)` gives the batch of a step, the same whenever it is asked: any nesting of
            tensors that have their rows first. Draw with `zo.estimators.Key(seed, step).generator()`.
        validation: A batch to choose weights by; None to keep the last weights.
        test: A batch for the table's figures; None where `evaluate` has its own.
        rows: The rows that `train` takes its batches from, if they are at hand: a run that goes on sees by
            them whether the data are the same.
    """

    train: Callable[[int, int], Batch]
    validation: Batch | None = None
    test: Batch | None = None
    rows: Batch | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse batches in the place of the function that gives them."""
        if not callable(self.train):
            raise ProblemError(
                f"Data, train: expected a function of (seed, step) that gives a batch, got a "
                f"{type(self.train).__name__}. For rows that are there already take tasks.Data.split."
            )

    def to(self, device: str) -> Data:
        """The same, with its batches on a device."""

        def moved(batch: Batch) -> Batch:
            return map_tensors(lambda tensor: tensor.to(device), batch)

        def train(seed: int, step: int) -> Batch:
            return moved(self.train(seed, step))

        return replace(self, train=train, validation=moved(self.validation), test=moved(self.test))

    @classmethod
    def drawn(
        cls,
        draw: Callable[[int, int, int], Batch],
        *,
        batch: int,
        validation: int = 0,
        test: int = 0,
    ) -> Data:
        """Rows that a function draws, new ones in every step.

        Args:
            draw: `draw(seed, step, rows)` gives so many rows, the same ones whenever it is asked: any nesting
                of tensors that have their rows first. Draw with `zo.estimators.Key(seed, step).generator()`.
            batch: Rows in a step.
            validation: How many rows weights are chosen by; they are drawn with the seed `HELD_OUT`.
            test: How many rows the last line is about; they are drawn with the seed after that.

        Raises:
            ConfigurationError: A number is out of its range.
        """
        for name, value, least in (("batch", batch, 1), ("validation", validation, 0), ("test", test, 0)):
            check_count("Data.drawn", name, value, least)

        def train(seed: int, step: int) -> Batch:
            return draw(seed, step, batch)

        return cls(
            train,
            draw(HELD_OUT, 0, validation) if validation else None,
            draw(HELD_OUT + 1, 0, test) if test else None,
        )

    @classmethod
    def split(cls, rows: Batch, *, batch: int, validation: int = 0, test: int = 0) -> Data:
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
        training_rows = count - validation - test
        if training_rows < 1:
            raise ConfigurationError(
                f"Data.split: expected more than the {validation} + {test} rows held out, got {count:,}. "
                "Hold fewer out, or give more rows."
            )
        if batch > training_rows:  # most of its rows would be there several times
            raise ConfigurationError(
                f"Data.split, batch: expected at most the {counted(training_rows, 'row')} to train on, got "
                f"{batch:,}. Lower it (--batch, in Python batch=...), or hold out fewer rows."
            )

        def part(index: Tensor | slice) -> Batch:
            return map_tensors(lambda tensor: tensor[index], rows)

        def train(seed: int, step: int) -> Batch:
            generator = Key(seed, step).generator()
            return part(torch.randint(training_rows, (batch,), generator=generator))

        held_out = part(slice(training_rows, training_rows + validation)) if validation else None
        tested = part(slice(training_rows + validation, count)) if test else None
        return cls(train, held_out, tested, rows=part(slice(training_rows)))

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset[Any] | DataLoader[Any],
        *,
        batch: int | None = None,
        validation: Dataset[Any] | DataLoader[Any] | None = None,
        test: Dataset[Any] | DataLoader[Any] | None = None,
    ) -> Data:
        """The items of a `torch.utils.data.Dataset`; or of a `DataLoader`, made batches by its `collate_fn`.

        An epoch passes over the items once, shuffled anew, and leaves out items that do not fill a batch. The
        order depends on seed and step alone, so that a run resumes to the same bits: a loader's sampler,
        generator and workers are not used.

        Args:
            dataset: The items to train on; `dataset[i]` is a nesting of tensors and numbers, of one row.
            batch: How many items a step takes; None for a loader's `batch_size`.
            validation: The items to choose weights by; all of them become one batch.
            test: The items for the table's figures; all of them become one batch.

        Raises:
            ConfigurationError: There are fewer items than a batch, or no batch size is known.
            ProblemError: The items cannot be asked for by number, or a loader has a sampler of its own.
        """
        items, collate = _items(dataset, "dataset")
        size = getattr(dataset, "batch_size", None) if batch is None else batch
        if size is None:
            raise ConfigurationError("Data.from_dataset: expected batch=, the number of items in a step.")
        check_count("Data.from_dataset", "batch", size, 1)
        if size > (count := len(items)):
            raise ConfigurationError(
                f"Data.from_dataset, batch: expected at most the {counted(count, 'item')} of the dataset, "
                f"got {size:,}. Lower it."
            )

        @lru_cache(maxsize=2)
        def order(seed: int, epoch: int) -> list[int]:
            return torch.randperm(count, generator=Key(seed, epoch).generator()).tolist()

        def train(seed: int, step: int) -> Batch:
            epoch, place = divmod(step, count // size)
            return collate([items[i] for i in order(seed, epoch)[place * size : (place + 1) * size]])

        def whole(source: Dataset[Any] | DataLoader[Any] | None, name: str) -> Batch | None:
            if source is None:
                return None
            held_out, as_batch = _items(source, name)
            return as_batch([held_out[i] for i in range(len(held_out))])

        return cls(train, whole(validation, "validation"), whole(test, "test"))


def _items(source: Dataset[Any] | DataLoader[Any], name: str) -> tuple[Any, Callable[[list[Any]], Any]]:
    """Return the items to ask for by number, and a function that makes a batch of some of them."""
    items, collate = source, default_collate
    if isinstance(source, DataLoader):
        items, collate = source.dataset, source.collate_fn
        if not isinstance(source.sampler, RandomSampler | SequentialSampler):
            raise ProblemError(
                f"Data.from_dataset, {name}: expected a loader that shuffles or goes in order, got one with "
                f"{type(source.sampler).__name__}. Make a tasks.Data of your own, whose train gives the "
                "batch of (seed, step)."
            )
    by_number = hasattr(items, "__getitem__") and hasattr(items, "__len__")
    if isinstance(items, IterableDataset) or not by_number:
        raise ProblemError(
            f"Data.from_dataset, {name}: expected items that can be asked for by number, with a length, got "
            f"{type(items).__name__}. Make a list of them, or a tasks.Data of your own."
        )
    return items, collate


def one_each(losses: Tensor, batch: Batch) -> Tensor:
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


def parts(batch: Batch, rows: int) -> Iterator[Batch]:
    """A batch cut into parts of at most so many rows."""
    for start in range(0, count_rows(batch), rows):
        yield map_tensors(lambda tensor, at=start: tensor[at : at + rows], batch)


@contextmanager
def unwritten(batch: Batch, where: str) -> Iterator[None]:
    """A block in which nothing is written to the tensors of a batch, which all methods share.

    Raises:
        ProblemError: Something was, as by `x *= 2`; the next method would have other rows.
    """
    before = [(tensor, version_of(tensor)) for tensor in tensors(batch)]
    yield
    for tensor, version in before:
        if version_of(tensor) != version:
            raise ProblemError(
                f"{where}: expected it to leave its data as they are, got a tensor of shape "
                f"{tuple(tensor.shape)} that was written to. All methods share it, and the next would have "
                "other rows: write x = 2 * x in place of x *= 2, or begin with x = x.clone()."
            )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A block in which a network is in evaluation mode; its modules' modes are put back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():  # parents first, so that a child's own mode stays
            if type(module).train is nn.Module.train:
                module.training = training
            else:  # such as a layer that merges weights for evaluation
                module.train(training)
