"""The base evaluation of a step: the objective at the weights as they are, before any query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from blackbox.failures import FailedRow, noted
from zo.batches import Batch, count_rows, tensors
from zo.errors import ObjectiveError
from zo.evaluators.evaluator import Step
from zo.evaluators.generators import Draws, put_back, watched_base
from zo.evaluators.loop import base_losses
from zo.evaluators.padding import read_by_layers
from zo.evaluators.state import Snapshot, as_it_is_now
from zo.execution.memory import measured
from zo.execution.precision import autocast_refused
from zo.failed_rows import survivors
from zo.objective import Closed, Objective, losses, mean_loss, uncompiled
from zo.parameters import Parameters


@dataclass(frozen=True)
class Base:
    """The result of a step's base evaluation.

    Attributes:
        step: The step, with all that its queries share.
        losses: `(rows,)`, NaN where a row failed.
        survived: `(rows,)` bool, False where a row failed.
        causes: Rows of black boxes that failed in it.
        start: The network before the base evaluation, from which each query starts.
        end: The network after it, with its buffers updated once.
        peak: Bytes that it took, 0 if that was not measured.
        narrow: Whether it made floats of 16 bits or less, None if that was not measured.
    """

    step: Step
    losses: Tensor
    survived: Tensor
    causes: Sequence[FailedRow]
    start: Snapshot
    end: Snapshot
    peak: int
    narrow: bool | None

    @property
    def draws(self) -> bool:
        """True if it drew from torch's own generators."""
        return self.step.draws is None or self.step.draws.any

    def loss(self) -> Tensor:
        """The mean over the rows that did not fail."""
        return mean_loss(self.losses[self.survived])

    def refuse_written(self) -> None:
        """Refuse weights, and what attributes hold, that a query wrote to and the base evaluation left alone.

        Queries after it were evaluated at other values.

        Raises:
            ObjectiveError: There are some.
        """
        names = [name for name in self.start.different() if name not in self.step.written]
        if names:
            raise ObjectiveError(
                f"network: expected a forward that writes the same weights each time, got one that wrote to "
                f"{', '.join(names)} in a query and not in the base evaluation. Keep such weights in a "
                "buffer, or write them outside of the objective."
            )
        inside = self.start.changed(self.step.inside.written if self.step.inside else ())
        if inside:
            raise ObjectiveError(
                f"network: expected a forward that writes to the same attributes each time, got one that "
                f"wrote inside of {', '.join(inside)} in a query and not in the base evaluation. Keep it in "
                "a buffer, or put a new one in its place instead of writing inside of it."
            )

    @contextmanager
    def intact(self) -> Iterator[None]:
        """A block of queries; where it ends in an error, the network is as it was before the base."""
        try:
            yield
            self.refuse_written()
        except BaseException:
            self.start.restore()
            raise


def behind_first_writes(base: Base, evaluate: Callable[[], Base]) -> Base:
    """The base evaluation after a first batch has set weights; the given one where it sets none.

    A layer may write its weights on its first batch, as one of activation normalization does. It would write
    them in each query too, over the query's move.

    Args:
        base: The first base of a network, or of a mode; weights were written in it.
        evaluate: Evaluates the same once more.

    Raises:
        ObjectiveError, FailedQueriesError: See `evaluate_base`; the network is as it was.
    """
    try:
        base.end.restore()
        put_back(base.start.generators)  # the same draws
        if base.start.different():
            again = evaluate()
            if not again.step.written:
                again.step.tally.queries += 1
                return replace(again, end=base.end)  # buffers and generators moved on once
            base.step.tally.queries += 1  # it writes them each time: they are a function of the weights
    except BaseException:
        base.start.restore()
        raise
    base.start.restore()
    return base


def evaluate_base(
    network: nn.Module,
    objective: Objective,
    parameters: Parameters,
    batch: Batch,
    number: int,
    *,
    measure: bool,
) -> Base:
    """Evaluate the objective once, and leave the network as it was, for the queries to start from.

    Args:
        network: The network; its forward may write to buffers, and to weights, as a momentum encoder's does.
        objective: The objective that is evaluated.
        parameters: The parameters that will be perturbed.
        batch: Any nesting of tensors with rows first; None for a closure.
        number: The number of the step.
        measure: Whether to measure the memory that it takes, as at a first step.

    Raises:
        ObjectiveError: The batch or the losses do not have rows first; a batch for a closure; or the network
            runs under autocast.
        FailedQueriesError: No row has a finite loss.
            In all these cases the network is as it was.
    """
    rows = None
    if not isinstance(objective, Closed):
        rows = count_rows(batch)
    elif batch is not None:
        raise ObjectiveError(
            f"objective: expected no batch for a closure without arguments, got {type(batch).__name__}. "
            "Call backward() with none, or make it an objective(network, batch)."
        )
    parameters.refuse_replaced(network)
    snapshot = Snapshot(network)
    versions = _versions(batch)
    try:
        with (
            autocast_refused(network, parameters, inside=measure),
            measured(measure) as peak,
            noted() as causes,
            read_by_layers(parameters) if measure else nullcontext(),
            watched_base() or nullcontext() as watched,
        ):
            base = losses(objective, network, batch, rows)
        survived = survivors(base, number, causes)
        base = torch.where(survived, base, torch.nan)  # an infinite loss is a failed row's, too
        if versions != _versions(batch):
            raise ObjectiveError(
                "batch: expected a forward that leaves its input as it is, got one that writes to a tensor "
                "of the batch in place, so that each query would see another one. Let it begin with a clone."
            )
        written, inside = snapshot.written(peak.written), snapshot.inside(peak.written)
        end = Snapshot(network, inside=as_it_is_now(inside))
    finally:
        snapshot.restore()
    step = Step(network, parameters, objective, batch, len(base), written, inside, number=number)

    def again() -> None:
        step.tally.queries += 1
        with uncompiled():
            base_losses(step, snapshot)

    step = replace(step, draws=Draws(snapshot.generators, end.generators, again, watched))
    return Base(step, base, survived, causes, snapshot, end, peak.peak, peak.narrow if measure else None)


def _versions(batch: Batch) -> list[int]:
    """Return how often each tensor of a batch was written to; inference tensors do not count it."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors(batch)]
