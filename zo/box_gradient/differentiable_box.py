"""`DifferentiableBox`: the module that `differentiable` makes, and its counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.arrays import in_order
from blackbox.checks import check_count, check_flag, check_fraction
from blackbox.errors import BudgetError, RowFailedError
from blackbox.running import outside_autocast
from zo.box_gradient.along import along_gradient
from zo.box_gradient.autograd_function import BlackBoxCall
from zo.box_gradient.doubt import LEAST, gives_slopes, is_checked, look_again, most_asked
from zo.box_gradient.once import Once
from zo.box_gradient.row_queries import (
    RowQueries,
    alive_rows,
    as_rows,
    change_of,
    from_other_side,
    plan_queries,
    row_differences,
)
from zo.box_gradient.row_rge import RowRGE
from zo.box_gradient.row_units import RowUnits, most_units
from zo.box_gradient.seeds import RowSeed
from zo.box_gradient.shown import Shown
from zo.box_gradient.tangent_rows import TangentRows
from zo.errors import ConfigurationError, FailedQueriesError
from zo.estimators.cge import CGE
from zo.failed_rows import bearable
from zo.same_run import arrays_of, described, refuse_other_run
from zo.tangents.tangent import Tangent

_lock = Lock()  # of counts and what inputs have shown, for threads that share a box

TRIED = 4  # rows of a call, of an input that seems to want steps of another size


@dataclass
class RowCounts:
    """The counts of a `DifferentiableBox`.

    Attributes:
        calls: forward calls that recorded a gradient; they number the draws.
        rows: perturbed rows, evaluated in backward: each row's queries are its own.
        dropped: perturbed rows that were left out because they failed.
        checks: further rows, for queries asked again, or the other way.
    """

    calls: int = 0
    rows: int = 0
    dropped: int = 0
    checks: int = 0


class DifferentiableBox(nn.Module):
    """A black box that autograd passes through; made by `differentiable`, which explains its settings.

    Calls number the draws in the order of forward, so a run that is resumed from `state_dict` (seed, counts,
    and what the tangent has learned) goes on to the same bits; the state of a run with another seed or
    tangent is refused. A box without a seed of the user's takes the number of the state. Under
    `torch.utils.checkpoint` forward runs again in backward: the base is evaluated twice, and the
    recomputation may take a number of its own, but the same one in every run. Calls in several threads have
    numbers, and directions, of their own, in the order in which they come. A deep copy counts and learns
    by itself, around the same box; without a seed of the user's it draws by itself too.

    Attributes:
        counts: the calls and rows so far, a `RowCounts`.
        unanswered: the numbers of gradients, in this process, that are zero because all of their queries
            failed. No part of the state.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        estimator: RowRGE | CGE | None,
        tangent: Tangent | None,
        seed: int | None,
        max_rows: int | None,
        max_dropped: float,
        check: bool,
    ) -> None:
        super().__init__()
        if max_rows is not None:
            check_count("differentiable", "max_rows", max_rows)
        check_fraction("differentiable", "max_dropped", max_dropped)
        self.box = box
        self.estimator = estimator
        self._seed = RowSeed.of(seed)
        self.max_rows = max_rows
        self.max_dropped = max_dropped
        self.check = check_flag("differentiable", "check", check)
        self.counts = RowCounts()
        self.unanswered = 0
        self._tangent = None if tangent is None else TangentRows(box, tangent)
        self._shown = Shown(box) if tangent is not None and tangent.learns else None
        self._units = RowUnits(box)
        self._once = Once(box)

    def forward(self, *arrays: Any, **named: Any) -> Any:
        """Evaluate every row; as the box itself, and with a graph where an input requires a gradient.

        Raises:
            What the box raises; from backward also what it raises on a perturbed row, and
            FailedQueriesError: more than `max_dropped` of the queries failed. Gradients that autograd
                had reached before are filled: zero them before going on.
            DerivativeError: forward mode, `vmap`, or a derivative of the gradient.
        """
        if torch.compiler.is_compiling():  # it would trace what tangents learn; decision 234
            return torch.compiler.disable(self.forward)(*arrays, **named)
        specs = self.box.inputs
        if named:
            arrays = in_order(repr(self.box), specs, arrays, named)
        if len(arrays) != len(specs) or not all(isinstance(array, Tensor) for array in arrays):
            return self.box(*arrays)  # NumPy arrays carry no gradient; all else is the box's to refuse
        # Detached, an input without derivative neither makes a graph nor is perturbed.
        pairs = zip(specs, arrays, strict=True)
        inputs = [array if spec.differentiable else array.detach() for spec, array in pairs]
        recorded = torch.is_grad_enabled() and any(array.requires_grad for array in inputs)
        with self._number(recorded) as number:
            outputs = BlackBoxCall.apply(self.box, partial(self.pull_back, number), *inputs)
        if self._tangent is not None and recorded:
            self._tangent.start()
            self._look(number, inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    @torch.no_grad()
    def evaluate(
        self, inputs: tuple[Tensor, ...], *, recorded: bool, number: int | None = None
    ) -> tuple[tuple[Tensor, ...], int]:
        """Run the forward pass without autograd; return the box's outputs and the number of the call.

        Args:
            inputs: the inputs of the call, `(*leading, *spec.shape)`.
            recorded: whether `pull_back` will be asked for this call's gradients.
            number: the call's, if it is not the next one.
        """
        with self._number(recorded) as following:
            outputs = self.box(*(array.detach() for array in inputs))
        if self._tangent is not None and recorded:
            self._tangent.start()
        # copies: autograd lets nobody write to what is a view, as rows in further axes are
        copies = tuple(out.clone() for out in (outputs if isinstance(outputs, tuple) else (outputs,)))
        return copies, following if number is None else number

    def _look(self, call: int, inputs: Sequence[Tensor]) -> None:
        """Say it where values alone do not show the derivative by an input."""
        if self._shown is None:
            return
        moved = [
            place
            for place, array in enumerate(inputs)
            if array.requires_grad and not type(array.grad_fn).__name__.startswith(BlackBoxCall.__name__)
        ]
        with _lock:
            names = self._shown.look(as_rows(self.box.inputs, tuple(inputs)), moved)
        if names:
            self._once.hidden(call, names)

    @contextmanager
    def _number(self, recorded: bool) -> Iterator[int]:
        """A block for one call, with a number that no call in another thread has; one that fails has none."""
        with _lock:
            number = self.counts.calls
            self.counts.calls += recorded
        try:
            yield number
        except BaseException:
            with _lock:
                if recorded and self.counts.calls == number + 1:
                    self.counts.calls = number
            raise

    def _spent(self, *, rows: int = 0, dropped: int = 0, checks: int = 0) -> None:
        """Count, also where calls of several threads go backward at once."""
        with _lock:
            self.counts.rows += rows
            self.counts.dropped += dropped
            self.counts.checks += checks

    @outside_autocast()
    @torch.no_grad()
    def pull_back(
        self,
        call: int,
        needed: tuple[bool, ...],
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """Run the backward pass: estimate the gradients of one call's inputs from those of its outputs.

        Args:
            call: the number of the call.
            needed: which inputs require a gradient.
            inputs: all of them, `(*leading, *spec.shape)`.
            outputs: the outputs of the base.
            cotangents: gradients of the outputs; None for those that the loss does not use.

        Returns:
            The gradients of the needed inputs, in their shapes, dtypes and device.
        """
        if torch.compiler.is_compiling():
            alone: Any = torch.compiler.disable(self.pull_back)
            return alone(call, needed, inputs, outputs, cotangents)
        base = as_rows(self.box.inputs, inputs)
        results = as_rows(self.box.outputs, outputs)
        perturbed = [place for place, needs in enumerate(needed) if needs]
        by_place = {place: c for place, c in enumerate(cotangents) if c is not None}
        gradients = [torch.zeros_like(base[place]) for place in perturbed]
        alive = alive_rows(results)
        if len(alive) and by_place:
            draws = self._seed.generator(call)
            if isinstance(self.estimator, RowRGE) and self._seed.shared(call, self):
                self._once.seeds(call, self._seed.words())
            arriving = {place: c.reshape(results[place].shape)[alive] for place, c in by_place.items()}
            units = self._units_of(call, perturbed, base, alive, results, arriving)
            queries = plan_queries(
                self.box, self.estimator, base, perturbed, alive, draws, self.max_rows, units
            )
            if self._tangent is None:
                outputs_alive = {place: results[place][alive] for place in arriving}
                pieces = self._by_queries(call, queries, outputs_alive, arriving)
            else:
                survived = [tensor[alive] for tensor in results]
                pieces = self._by_tangent(call, self._tangent, queries, survived, arriving)
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient[alive] = piece.to(gradient.dtype).reshape(len(alive), *gradient.shape[1:])
        return tuple(g.reshape(inputs[place].shape) for g, place in zip(gradients, perturbed, strict=True))

    def _units_of(
        self,
        call: int,
        perturbed: list[int],
        base: list[Tensor],
        alive: Tensor,
        outputs: list[Tensor],
        cotangents: dict[int, Tensor],
    ) -> dict[int, Tensor]:
        """The units of the steps; said once where they are not those of the specs."""
        estimator = self.estimator
        if estimator is None or getattr(estimator, "basis", None) is not None:
            return RowUnits(self.box).units(perturbed, lambda place, unit: False)

        def bears(place: int, unit: Tensor) -> bool:
            if not self.check:
                return False
            rows = alive[:TRIED]
            outputs_of_rows = {at: outputs[at][rows] for at in cotangents}
            arriving = {at: cotangent[: len(rows)] for at, cotangent in cotangents.items()}
            rule, draws = RowRGE(estimator.mu, 1), torch.Generator().manual_seed(place)
            try:
                trial = plan_queries(self.box, rule, base, [place], rows, draws, self.max_rows, {place: unit})
                change = partial(change_of, outputs=outputs_of_rows, cotangents=arriving)
                for size in unit[unit != 1].unique():  # numbers of one size at a time
                    assert trial.directions is not None
                    those = trial.directions * (unit == size).to(trial.directions)
                    part = replace(trial, directions=those)
                    differences, valid, _ = row_differences(part, outputs_of_rows, arriving)
                    good, checks = gives_slopes(part, differences, valid, change)
                    self._spent(checks=valid.numel() + checks)
                    if not good:
                        return False
            except (BudgetError, RowFailedError, ConfigurationError):
                return False
            return True

        with _lock:
            self._units.look(perturbed, base, alive)
        units = self._units.units(perturbed, bears)
        self._once.units(call, self._units.differ(perturbed))
        return units

    def _by_tangent(
        self,
        call: int,
        learner: TangentRows,
        queries: RowQueries,
        outputs: list[Tensor],
        cotangents: dict[int, Tensor],
    ) -> list[Tensor]:
        """Gradients `(rows, size)` of the perturbed inputs, of the rows that are alive, without a query."""
        by_place = learner.pull_back(call, learner.rows(queries.inputs, outputs), cotangents)
        gradients = [by_place[place] for place in queries.perturbed]
        if self.check and self.box.settable and learner.due:  # a few rows are moved along the gradient
            outputs_with_gradient = {place: outputs[place] for place in cotangents}
            agreement = along_gradient(queries, gradients, outputs_with_gradient, cotangents)
            self._spent(checks=agreement.asked)
            if agreement.found is not None and agreement.wrong:
                self._once.wrong(call, repr(learner.tangent), agreement.found)
        return gradients

    def _by_queries(
        self, call: int, queries: RowQueries, outputs: dict[int, Tensor], cotangents: dict[int, Tensor]
    ) -> list[Tensor]:
        """The same by the box's answers; at some calls a few rows are asked again."""
        moved = self._once.watched(outputs)
        differences, valid, answered = row_differences(queries, outputs, cotangents, moved)
        self._count(call, valid, answered, queries.perturbed)
        self._once.still(call, outputs, cotangents, moved)
        if self.check and is_checked(call):
            change = partial(change_of, outputs=outputs, cotangents=cotangents)
            doubt, checks = look_again(queries, differences, valid, change)
            self._spent(checks=checks)
            if doubt is not None:
                self._once.doubt(call, doubt)
        differences, valid, checks = from_other_side(queries, outputs, cotangents, differences, valid)
        self._spent(checks=checks)
        with _lock:
            self.unanswered += queries.unanswered(valid)
        sizes = [queries.inputs[place][0].numel() for place in queries.perturbed]
        return list(queries.reduce(differences, valid).split(sizes, dim=1))

    def _count(self, call: int, valid: Tensor, answered: Tensor, perturbed: list[int]) -> None:
        """Count the queries of a call; refuse too many failures, and say once that few rows answer."""
        rows, dropped = valid.numel(), int((~valid).sum())
        self._spent(rows=rows, dropped=dropped)
        if rows and (dropped > bearable(self.max_dropped, rows) or dropped == rows):
            raise FailedQueriesError(
                f"{self.box!r}, call {call}: expected at most {self.max_dropped:.0%} of {rows} perturbed "
                f"rows to fail, {dropped} did. See the black box's ledger; a smaller mu keeps them nearer to "
                "the base, max_dropped lets more of them go."
            )
        if rows:
            self._once.answers(call, perturbed, answered)

    @property
    def seed(self) -> int:
        """The seed, or by default the box's number in the order of making."""
        return self._seed.number

    @property
    def tangent(self) -> Tangent | None:
        """The copy that learns; None without one."""
        return None if self._tangent is None else self._tangent.tangent

    @property
    def trust(self) -> list[float | None]:
        """The tangent's relative error for each call in the last backward, in the order of forward.

        The relative error of its prediction of outputs that it had not learned from: 0 is perfect, 1 no
        better than their mean. None where there was nothing to predict.
        """
        return [] if self._tangent is None else self._tangent.trust

    def metrics(self) -> dict[str, float]:
        """The trust of the last backward, in all and by call (from 1 on), as a run's metrics take it."""
        return {} if self._tangent is None else self._tangent.metrics()

    def get_extra_state(self) -> dict[str, Any]:
        """Save the part of `state_dict` of its own: seed, counts, and what the tangent has learned."""
        learned = None if self._tangent is None else self._tangent.state_dict()
        counts, by_order = asdict(self.counts), self._seed.by_order
        state = {"seed": self.seed, "seed_by_order": by_order, "counts": counts, "tangent": learned}
        return state | {"units": self._units.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken, with its number where neither has a seed of the user's.

        Raises:
            ConfigurationError: the state is of a run with another seed or tangent, or with a tangent of a
                box with other arrays.
        """
        learned = state["tangent"]
        seed = RowSeed(state["seed"], state["seed_by_order"])
        saved = {"seed": seed.words(), "tangent": repr(None) if learned is None else learned["kind"]}
        settings = {"seed": self._seed.words(), "tangent": repr(self.tangent)}
        refuse_other_run("differentiable", settings, saved)
        refuse_other_run("differentiable", {"box": arrays_of(self.box)}, learned or {})
        self._seed = seed.keep_free()
        if self._tangent is not None and learned is not None:
            self._tangent.load_state_dict(learned)
        self._units.load_state_dict(state["units"])
        self.counts = RowCounts(**state["counts"])

    def extra_repr(self) -> str:
        """The box, and how its gradient is estimated."""
        words = [repr(self.box), described(self.estimator)]
        words += [] if self.tangent is None else [f"tangent={self.tangent!r}"]
        number = f" (number {self.seed})" if self._seed.by_order else ""
        return ", ".join([*words, f"seed={self._seed.words()}{number}"])

    def __deepcopy__(self, memo: dict[int, Any]) -> DifferentiableBox:
        memo[id(self.box)] = self.box  # a resource with a ledger and a budget, such as a pool or a connection
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied._seed = self._seed.again()
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._seed.keep_free()


def most_checks(box: BlackBoxFunction, queries: int, rows: int, calls: int, *, central: bool) -> int:
    """The most rows that checks and units take in so many calls, beside those of the queries.

    Args:
        box: the box whose calls they are.
        queries: the queries of each row, both signs counted.
        rows: how many rows a call has.
        calls: how many calls of the box there are.
        central: whether there are both signs.
    """
    checked = sum(is_checked(call) for call in (0, *(10**power for power in range(20))) if call < calls)
    pairs = rows * queries // (2 if central else 1)
    trial_rows = min(rows, TRIED) + LEAST  # with each unit
    return checked * most_asked(pairs, central=central) + most_units(box.inputs) * trial_rows
