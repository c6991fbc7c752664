"""The check of a fast evaluator against `loop`, on pieces shaped like those that real steps have.

A real chunk moves weights of one layer, mostly, and all other modules run as they are on the rows of all
variants. So there is a piece for each tensor; besides there is one as long as a real chunk, and
one that moves a weight of every tensor. Steps are far longer than mu, so that a change is distinguishable
from rounding: what is wrong in the wiring is wrong at any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from blackbox.errors import BudgetError, OutputError
from zo.evaluators.evaluator import Changes, Evaluator, Step, Unservable
from zo.evaluators.generators import Disturbed
from zo.evaluators.loop import Loop
from zo.evaluators.sentinel import PLACE, ROUNDING, SHAKES, inserted, jumps_at, left_out, rounding_of
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Directions, Perturbation

# The next length is for queries whose change is not distinguishable from rounding.
LENGTHS = (1e-2, 1e-1, 1.0)
DISTINGUISHABLE = 20  # times the rounding: then a twentieth of a change that is missing is seen

Remember = Callable[[str, Callable[[], Tensor]], Tensor]  # a journal's: a name, and what gives the numbers


@dataclass(frozen=True)
class Piece:
    """Queries, and what `loop` says of the first ones of them.

    Attributes:
        name: The parameter that they move, for messages.
        queries: The queries that the evaluator is asked.
        truth: `(compared, rows)` changes of the losses by `loop`.
        shorter: The same with steps of mu in those that `loop` has not tried; None if it has tried all.
    """

    name: str
    queries: Perturbation
    truth: Tensor
    shorter: Perturbation | None = None


@dataclass(frozen=True)
class Compared:
    """The changes that `loop` gives for queries at steps longer than those of the plan.

    Attributes:
        changes: `(queries, rows)` of the losses, float64.
        lengths: `(queries,)`, of the steps: theirs, or how many times as long as those of the plan.
    """

    changes: Tensor
    lengths: Tensor

    @classmethod
    def remembered(cls, remember: Remember, name: str, work: Callable[[], Compared]) -> Compared:
        """Return the result of `work`, or the journal's, in one tensor: lengths are its last column."""

        def packed() -> Tensor:
            compared = work()
            return torch.cat([compared.changes, compared.lengths[:, None].to(compared.changes)], dim=1)

        whole = remember(name, packed)
        return cls(whole[:, :-1], whole[:, -1])


@dataclass(frozen=True)
class Truth:
    """The results that a fast evaluator must give.

    Attributes:
        pieces: Queries and the changes of their losses.
        rounding: `(rows,)`: how far losses may be off by rounding and by noise.
    """

    pieces: tuple[Piece, ...]
    rounding: Tensor


def is_due(number: int) -> bool:
    """Say whether the check is repeated at a step, from 0: a branch unused at first may be taken later."""
    while number >= 10 and number % 10 == 0:
        number //= 10
    return number in (0, 1)


def most_checks(
    number: int,
    parameters: Parameters,
    evaluators: Sequence[Evaluator],
    queries: int,
    chunk: int,
    stack: int | None,
    repeated: int,
) -> int:
    """Return the most queries that a step takes beside its plan, unless an evaluator is in doubt or fails.

    Args:
        number: The number of the step.
        parameters: The perturbed parameters.
        evaluators: The evaluators that may serve, `Loop` last.
        queries: The number of queries in the step's plan.
        chunk: The least number of queries in a chunk.
        stack: How many queries of a chunk are a stack; None for all.
        repeated: How many queries are evaluated again at a step that is checked.
    """
    stacks = -(-queries // chunk) * -(-chunk // (stack or chunk))
    sentinels = stacks * max(evaluator.sentinels for evaluator in evaluators)
    sentinels += 2 if len(evaluators) > 1 else 0  # the drawn query, by both
    if not is_due(number):
        return sentinels
    sentinels += repeated + (number > 0) + 2  # for noise and slopes; to find numbers of 16 bits, and where
    if len(evaluators) == 1:
        return sentinels
    tensors, entries = len(parameters.tensors), 3
    by_loop = SHAKES + 1 + tensors * entries * len(LENGTHS)
    fast = tensors * (entries + 2) + max(queries, 128) + 4
    return sentinels + by_loop + fast * (len(evaluators) - 1)


def truth_of(
    step: Step,
    base: Tensor,
    example: Perturbation,
    chunk: int,
    remember: Remember,
    *,
    first: bool,
) -> Truth:
    """Evaluate by `loop` what the check compares with.

    Args:
        step: The step; by its number entries of each tensor are chosen.
        base: Losses of the base, `(rows,)`.
        example: Queries of the kind to check, `Coordinates` or `Directions`, of the step's plan.
        chunk: How many queries real chunks have.
        remember: Keeps what was evaluated, for a process that takes the step after this one was killed.
        first: Whether an evaluator is checked for the first time: on three entries of each tensor, not two,
            and on further pieces, one of all tensors and one as long as real chunks.
    """
    rounding = remember("check rounding", lambda: rounding_of(step, base)).to(base.device)
    if isinstance(example, Directions):
        work = partial(_directed, step, base, example.steps[:2])
        compared = Compared.remembered(remember, "check directions", work)
        longer = example.steps[:2] * compared.lengths[:, None].to(example.steps)
        # twice, so that a single direction has company to be mixed with
        twice = Directions(torch.cat([longer] * 2))
        return Truth((Piece("a direction", twice, compared.changes.to(base)),), rounding)
    parameters, pieces, plan_length = step.parameters, [], float(example.steps.abs().max())
    for name, start, tensor in zip(parameters.names, parameters.starts, parameters.tensors, strict=True):
        indices = start + torch.tensor(_entries(tensor.numel(), step.number, first))
        work = partial(_distinguishable, step, base, indices, rounding, plan_length)
        compared = Compared.remembered(remember, f"check {name} {len(indices)}", work)
        steps = compared.lengths.to("cpu", parameters.dtype)
        pieces.append(Piece(name, Coordinates(indices, steps), compared.changes.to(base)))
    return Truth((*pieces, *(_long(pieces, step, chunk, plan_length) if first else ())), rounding)


def fault_of(evaluator: Evaluator, step: Step, base: Tensor, truth: Truth, remember: Remember) -> str | None:
    """Describe the fault of an evaluator; None if it agrees with `loop` on every piece.

    Args:
        evaluator: The fast evaluator to check.
        step: The step, with its network, objective and batch.
        base: Losses of the base, `(rows,)`.
        truth: The results that it must give.
        remember: Keeps the evaluations, as for `truth_of`.
    """
    wrong: list[str] = []
    try:
        changes = evaluator.begin(step, base)
        for number, piece in enumerate(truth.pieces):

            def evaluated(piece: Piece = piece) -> Tensor:
                step.tally.queries += len(piece.queries)
                try:
                    return changes(piece.queries)
                except (BudgetError, Disturbed, OutputError, Unservable):
                    raise
                except Exception:  # at a long step, perhaps
                    if piece.shorter is None:
                        raise
                    step.tally.queries += len(piece.shorter)
                    return changes(piece.shorter)

            measured = remember(f"check {type(evaluator).__name__} {number} {piece.name}", evaluated)
            if not _agree(evaluator, step, base, piece, measured.to(base.device), truth.rounding):
                wrong.append(piece.name)
        if wrong:
            single = [
                name for name in wrong if ", " not in name
            ] or wrong  # not the piece of all, if one names a parameter
            return f"disagreed with loop for {', '.join(dict.fromkeys(single))}"
    except (
        BudgetError,
        Disturbed,
        OutputError,
    ):  # no evaluator makes a box's outputs, so that is the box's fault
        raise
    except Unservable as error:
        return f"cannot serve: {error}"
    except Exception as error:  # whatever it is, loop has just shown that the objective works
        return f"could not run ({type(error).__name__}: {error})"
    return None


def refuse_off(
    evaluator: Evaluator,
    step: Step,
    base: Tensor,
    changes: Changes,
    queries: Perturbation,
    chosen: int,
) -> Tensor:
    """Evaluate the queries of a real chunk, and with them one of them at a longer step, by `loop` too.

    It sees what a sentinel, which does not move, cannot: a variant's own rows mixed with those of others.
    Where the objective fails at the longer step, the query is compared as it is.

    Args:
        evaluator: The fast one that serves the chunk.
        step: The step, with its network, objective and batch.
        base: Losses of the base, `(rows,)`.
        changes: The evaluator's function from queries to changes.
        queries: The queries of the chunk.
        chosen: The number of the query among them.

    Returns:
        The changes of the losses for the queries themselves, `(queries, rows)`.

    Raises:
        Unservable: The two disagree.
    """
    one = queries.part(chosen, chosen + 1)
    longer = one.steps * (LENGTHS[0] / one.steps.abs().max())
    moved: Perturbation = Directions(longer)
    if isinstance(one, Coordinates):
        moved = Coordinates(one.indices, longer)
    loop_changes = _tried(step, base, moved)
    if loop_changes is None:
        moved, truth, query_changes = one, _by_loop(step, base, one), changes(queries)
        change = query_changes[chosen]
    else:
        truth, both = loop_changes, changes(inserted(queries, moved))
        change, query_changes = both[PLACE], left_out(both)
        step.tally.queries += 1
    off = (change - truth[0]).abs().nan_to_num(0.0)
    eps = max(torch.finfo(dtype).eps for dtype in (base.dtype, step.parameters.dtype))
    allowed = evaluator.agreement * truth[0].abs().nan_to_num(0.0)
    if (off <= allowed + 3 * ROUNDING * eps * base.abs().nan_to_num(0.0)).all():
        return query_changes
    allowed = allowed + rounding_of(step, base)
    if (off <= allowed).all() or (off <= allowed + jumps_at(step, base, moved, truth[0])).all():
        return query_changes
    name = "a direction"
    if isinstance(one, Coordinates):
        name = step.parameters.names[int(step.parameters.locate(one.indices)[0])]
    raise Unservable(
        f"it disagreed with loop for {name} among the queries of a step, by up to {off.max().item():.1e}, as "
        "if the rows of different variants were mixed"
    )


def _entries(size: int, number: int, first: bool) -> list[int]:
    """Flat indices in a tensor of so many entries; always two or more, for a stack of one is no stack."""
    if first:
        places = {0, (size - 1) // 2, size - 1}
    else:
        places = {(7919 * number) % size, (104729 * number + size // 2) % size}
    return sorted(places) if len(places) > 1 else [*places, *places]


def _by_loop(step: Step, base: Tensor, queries: Perturbation) -> Tensor:
    step.tally.queries += len(queries)
    return Loop().begin(step, base)(queries)


def _tried(step: Step, base: Tensor, queries: Perturbation) -> Tensor | None:
    """Changes by `loop` at a step longer than those of the plan; None where that fails in all rows."""
    try:
        changes = _by_loop(step, base, queries)
    except (BudgetError, Disturbed):
        raise
    except Exception:  # a box may refuse what no query of the plan asks of it
        return None
    return changes if torch.isfinite(changes).any() else None


def _distinguishable(
    step: Step, base: Tensor, indices: Tensor, rounding: Tensor, plan_length: float
) -> Compared:
    """Evaluate entries by `loop`, and return their changes and the lengths of the steps that they took.

    A step is lengthened until its change is distinguishable from rounding, as far as the objective allows;
    where it fails at all of the lengths, it is as long as those of the plan.
    """
    changes, lengths = [], []
    for index in indices.split(1):
        truth, length = None, plan_length
        for longer in LENGTHS:
            loop_changes = _tried(step, base, _coordinate(step, index, longer))
            if loop_changes is None:
                break
            truth, length = loop_changes, longer
            if (truth.abs().nan_to_num(0.0) > DISTINGUISHABLE * rounding).any():
                break
        if truth is None:
            truth = _by_loop(step, base, _coordinate(step, index, plan_length))
        changes.append(truth[0].double())
        lengths.append(length)
    return Compared(torch.stack(changes), torch.tensor(lengths, dtype=torch.float64))


def _coordinate(step: Step, index: Tensor, length: float) -> Coordinates:
    return Coordinates(index, torch.full((1,), length, dtype=step.parameters.dtype))


def _directed(step: Step, base: Tensor, steps: Tensor) -> Compared:
    """Evaluate directions by `loop` at longer steps, and return how many times as long they are."""
    changes, factors = [], []
    for direction in steps.split(1):
        factor = LENGTHS[0] / float(direction.abs().max())
        truth = _tried(step, base, Directions(direction * factor))
        if truth is None:
            truth, factor = _by_loop(step, base, Directions(direction)), 1.0
        changes.append(truth[0].double())
        factors.append(factor)
    return Compared(torch.stack(changes), torch.tensor(factors, dtype=torch.float64))


def _long(pieces: list[Piece], step: Step, chunk: int, plan_length: float) -> list[Piece]:
    """A piece of each tensor's first entry, and one as long as real chunks, of the largest tensor's entries.

    What a forward does may depend on how many rows it sees. `plan_length` is the length of the plan's steps.
    """
    queries = [piece.queries for piece in pieces]
    assert all(isinstance(query, Coordinates) for query in queries)
    first = Coordinates(
        torch.cat([query.part(0, 1).indices for query in queries]),  # pyright: ignore[reportAttributeAccessIssue]
        torch.cat([query.part(0, 1).steps for query in queries]),
    )
    first_truth = torch.cat([piece.truth[:1] for piece in pieces])
    mixed = [
        Piece(
            ", ".join(piece.name for piece in pieces[start : start + chunk]),
            first.part(start, start + chunk),
            t,
        )
        for start, t in zip(range(0, len(first), chunk), first_truth.split(chunk), strict=True)
    ]
    sizes = [tensor.numel() for tensor in step.parameters.tensors]
    largest = sizes.index(max(sizes))
    piece, start = pieces[largest], step.parameters.starts[largest]
    more = chunk - len(piece.queries)
    if more <= 0:
        return mixed
    indices = start + torch.arange(more) * max(1, max(sizes) // more) % max(sizes)
    assert isinstance(piece.queries, Coordinates)
    indices, steps = torch.cat([piece.queries.indices, indices]), piece.queries.steps
    both = Coordinates(indices, torch.cat([steps, steps[:1].expand(more)]))
    shorter = Coordinates(indices, torch.cat([steps, torch.full_like(steps[:1], plan_length).expand(more)]))
    return [*mixed, Piece(piece.name, both, piece.truth, shorter)]


def _agree(
    evaluator: Evaluator, step: Step, base: Tensor, piece: Piece, changes: Tensor, rounding: Tensor
) -> bool:
    """Say whether changes `(queries, rows)` agree with `loop`, row by row."""
    truth = piece.truth
    changes, allowed = changes[: len(truth)], evaluator.agreement * truth.abs() + rounding
    lost_rows = ~torch.isfinite(changes) & torch.isfinite(truth)
    # A row that fails in one of them is a failed row, not a fault; most rows of a query are one.
    off = torch.where(torch.isfinite(changes) & torch.isfinite(truth), (changes - truth).abs(), 0.0)
    if (lost_rows.double().mean(dim=1) > 0.5).any():
        return False
    for number in torch.nonzero((off > allowed).any(dim=1)).flatten().tolist():
        jumps = jumps_at(step, base, piece.queries.part(number, number + 1), truth[number])
        if (off[number] > allowed[number] + jumps).any():
            return False
    return True
