"""`tasks.Data`: rows that a function draws; datasets and loaders of PyTorch, in an order by seed and step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import tasks
from tasks.errors import ConfigurationError, ProblemError
from zo.estimators import Key

X = torch.arange(14.0).reshape(7, 2)
PAIRS = TensorDataset(X, X.sum(1))


def normal(seed: int, step: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, 2, generator=Key(seed, step).generator())


def test_rows_that_are_drawn_are_others_in_every_step_and_held_out_ones_are_in_none():
    data = tasks.Data.drawn(normal, batch=3, validation=4, test=5)
    assert data.validation is not None and data.validation.shape == (4, 2)
    assert data.test is not None and data.test.shape == (5, 2)
    assert torch.equal(data.train(1, 2), normal(1, 2, 3))
    steps = [data.train(seed, step) for seed in range(3) for step in range(20)]
    rows = torch.cat([*steps, data.validation, data.test])
    assert len(rows.unique(dim=0)) == len(rows)


def test_without_held_out_rows_there_is_no_batch_of_them():
    data = tasks.Data.drawn(normal, batch=3)
    assert data.validation is None and data.test is None
    with pytest.raises(ConfigurationError, match=r"Data.drawn, test: expected a whole number >= 0, got -1"):
        tasks.Data.drawn(normal, batch=3, test=-1)


def test_an_epoch_passes_over_the_items_once_and_the_next_in_another_order():
    data = tasks.Data.from_dataset(PAIRS, batch=3)
    epochs = [torch.cat([data.train(0, step)[0] for step in steps]) for steps in ((0, 1), (2, 3))]
    for rows in epochs:
        numbers = rows[:, 0].int() // 2
        assert len({*numbers.tolist()}) == 6 and torch.equal(rows, X[numbers])
    assert not torch.equal(*epochs)
    x, y = data.train(0, 5)
    assert x.shape == (3, 2) and torch.equal(y, x.sum(1))


def test_a_batch_is_the_same_whenever_it_is_asked_and_another_for_another_seed():
    one, other = (tasks.Data.from_dataset(PAIRS, batch=3) for _ in range(2))
    late = other.train(1, 9)[0]
    for step in range(12):
        one.train(1, step)
    assert torch.equal(one.train(1, 9)[0], late) and not torch.equal(one.train(2, 9)[0], late)


def test_a_loader_gives_size_and_collation_and_all_of_what_is_held_out_is_one_batch():
    def doubled(items):
        return [2 * part for part in default_collate(items)]

    loader = DataLoader(PAIRS, batch_size=2, shuffle=True, collate_fn=doubled)
    data = tasks.Data.from_dataset(loader, validation=DataLoader(PAIRS, batch_size=3), test=PAIRS)
    assert len(data.train(0, 0)[0]) == 2 and data.train(0, 0)[0].max() > X.max() / 2
    assert torch.equal(data.validation[0], X) and torch.equal(data.test[1], X.sum(1))
    assert set(data.train(0, 0)[0][:, 0].tolist()) <= set((2 * X[:, 0]).tolist())


class Endless(IterableDataset):
    def __iter__(self):
        return iter([X])


@pytest.mark.parametrize(
    ("dataset", "batch", "error", "words"),
    [
        (PAIRS, 8, ConfigurationError, "at most the 7 items of the dataset, got 8"),
        (PAIRS, None, ConfigurationError, "expected batch="),
        (PAIRS, 0, ConfigurationError, "batch"),
        (Endless(), 2, ProblemError, "can be asked for by number, with a length, got Endless"),
        (
            DataLoader(PAIRS, batch_size=2, sampler=WeightedRandomSampler([1.0] * 7, 7)),
            None,
            ProblemError,
            "shuffles or goes in order, got one with WeightedRandomSampler",
        ),
    ],
)
def test_what_has_no_order_by_seed_and_step_is_refused(dataset, batch, error, words):
    with pytest.raises(error, match=words):
        tasks.Data.from_dataset(dataset, batch=batch)
