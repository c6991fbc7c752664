"""What ranks tell each other of a step's pieces: how a share went and what it came to, in one exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo.distributed.queries import StepQueries
from zo.distributed.ranks import Ranks
from zo.journal import Found

HEAD = 5  # numbers in front of a rank's differences: whether it failed, and its `Report`


@dataclass(frozen=True)
class Report:
    """How a rank's share of a round went.

    Attributes:
        done: how many of its pieces it has evaluated, in their order.
        checks: queries that checks have cost beside them.
        changed: the piece at which the evaluator's state changed, after which it stopped; None for none.
        following: how many pieces the next round should have.
    """

    done: int
    checks: int
    changed: int | None
    following: int


def tell_round(
    ranks: Ranks,
    step: int,
    queries: StepQueries,
    shares: Sequence[Sequence[int]],
    own: Mapping[int, Found],
    report: Report,
    failed: bool,
) -> tuple[list[Report], dict[int, Tensor], bool]:
    """Tell how this rank's share of a round went.

    Args:
        ranks: who tells each other.
        step: its number.
        queries: of the step.
        shares: the numbers of the pieces of each rank.
        own: what this rank found of its share.
        report: how it went.
        failed: whether it failed, at what it will say when all know.

    Returns:
        How all went; values of each piece that was evaluated, `(values,)`, NaN where dropped; whether some
        rank failed.
    """
    bounds = [[queries.bounds(number) for number in share] for share in shares]
    sizes = [[stop - start for start, stop in share] for share in bounds]
    numbers = [failed, report.done, report.checks, -1, report.following]
    if report.changed is not None:
        numbers[3] = report.changed
    mine = shares[ranks.rank]
    parts = [_sent(own[n]) if n in own else _missing(queries, n) for n in mine]
    given = torch.cat([torch.tensor(numbers, dtype=torch.float64), *parts])
    all_found = ranks.all_of(step, given, [HEAD + sum(size) for size in sizes])
    reports, found, failures = [], {}, []
    for share, size in zip(shares, sizes, strict=True):
        head, *values = all_found[: HEAD + sum(size)].split([HEAD, *size])
        all_found = all_found[HEAD + sum(size) :]
        broken, done, checks, changed, following = (int(number) for number in head)
        failures.append(broken)
        reports.append(Report(done, checks, None if changed < 0 else changed, following))
        found.update(zip(share[:done], values[:done], strict=True))
    return reports, found, any(failures)


def tell_known(
    ranks: Ranks,
    step: int,
    queries: StepQueries,
    numbers: Sequence[int],
    known: Mapping[int, Found],
    result: Tensor,
) -> None:
    """Tell all the pieces of rank 0's journal.

    Args:
        ranks: who is told.
        step: its number.
        queries: of the step.
        numbers: of the pieces.
        known: what they came to; empty on other ranks.
        result: `(values,)` of the step, where they are put, NaN where dropped.
    """
    if not numbers:
        return
    bounds = [queries.bounds(number) for number in numbers]
    given = torch.empty(0, dtype=torch.float64)
    if ranks.rank == 0:
        given = torch.cat([_sent(known[number]) for number in numbers])
    lengths = [sum(stop - start for start, stop in bounds), *[0] * (ranks.size - 1)]
    found = ranks.all_of(step, given, lengths)
    for start, stop in bounds:
        result[start:stop], found = found[: stop - start], found[stop - start :]


def _sent(found: Found) -> Tensor:
    """Values as they are sent, `(queries,)`: NaN stands for a dropped one."""
    return torch.where(found[1], found[0], torch.nan)


def _missing(queries: StepQueries, number: int) -> Tensor:
    """In the place of a piece that was not evaluated."""
    start, stop = queries.bounds(number)
    return torch.full((stop - start,), torch.nan, dtype=torch.float64)
