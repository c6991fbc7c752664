"""`fit_field`: look for the array that boxes lead to what was seen: an initial state, or an inflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.checks import check_count, check_number
from blackbox.errors import BudgetError, RowFailedError
from blackbox.notices import warn
from zo.batches import Batch, count_rows
from zo.errors import ConfigurationError, FailedQueriesError, NonFiniteGradientError, TangentWarning
from zo.objective import Objective
from zo.tangents.gradient import TangentGradient
from zo.tangents.models.foretold import ForetoldTangent
from zo.tangents.models.kernel import LARGEST, KernelTangent
from zo.tangents.models.structure import Specs
from zo.tangents.tangent import Tangent
from zo.tangents.trust import Limits

# decision 134:
SHORTER, TRIES = 0.25, 3  # of a move that raised the loss, so often
# decision 233, of the first changes:
NEAR = 0.3  # of the spread of an array's values
LOWER = 0.9  # of the loss after the last ones, below which a search that stalls looks around again
SLIGHT, SAME = 0.01, 1e-6  # of the size of values that are the same, by a spread of so little of it
FAR = 1e6  # times the loss at hand: what a loss that is not finite counts as, for a line search to turn back


class Field(nn.Module):
    """An array to look for, as a network that reads nothing.

    Args:
        values: to begin with, of any shape; floating.

    Attributes:
        values: the array, a parameter.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        if not (isinstance(values, Tensor) and values.is_floating_point()):
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise ConfigurationError(
                f"Field, values: expected a floating tensor, got {kind}. Write torch.zeros(shape), or the "
                "nearest that is known."
            )
        self.values = nn.Parameter(values.detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        """The array for each row: `(rows, *shape)`, whatever the rows hold."""
        return self.values.expand(len(rows), *self.values.shape)


@dataclass(frozen=True)
class FieldFit:
    """The result of `fit_field`.

    Attributes:
        loss: the least loss, by the boxes' own answers; the field has its values.
        losses: the losses of all evaluations, in their order; infinite where a box failed.
        rows: the number of rows that the boxes ran.
        why: the reason for the end: "rows" (the argument, or a box's own budget), "tolerance", or "stalled"
            where no move by the tangents lowers the loss.
        gradient: the gradient, with the tangents, their trust and their counts.
    """

    loss: float
    losses: tuple[float, ...]
    rows: int
    why: str
    gradient: TangentGradient


def fit_field(
    field: nn.Module,
    objective: Objective,
    *,
    boxes: Sequence[BlackBoxFunction],
    rows: int,
    batch: Batch | None = None,
    tangent: Tangent | Sequence[Tangent] | None = None,
    inner: int = 30,
    tolerance: float = 0.0,
    seed: int = 0,
    evaluated: Callable[[float], None] | None = None,
) -> FieldFit:
    """Lower the objective over a field's values, by values of the boxes alone.

        field = zo.Field(last_state)
        fit = zo.fit_field(field, objective, boxes=[solver], rows=400)

    An evaluation runs the boxes, and the tangents learn from their answers. Then, for no row, L-BFGS lowers
    the objective near there by the tangents, with each call answered by y_k + M(x) - M(x_k), as in a replay
    (in weather forecasting: incremental 4D-Var). The next evaluation judges that move. A move that did not
    lower the loss is shortened to a quarter, up to three times. If that does not help either the move is
    undone, and the next one gets a quarter of the iterations.

    Where arrays of the boxes have no layout, so that the tangents are `KernelTangent`, a search first looks
    around, unless a tangent has learned before or has a prior: it evaluates random changes of the field, as
    many as it has numbers, for at most half of the rows. They are three tenths of the spread of the field's
    values, or a hundredth of their size where they are the same. Where it stalls with a loss at least a tenth
    below that after the last changes, it looks around again, by three tenths of how far it has come.

    Where tangents are exact these are Gauss-Newton's moves, so a few evaluations go as far as hundreds of
    L-BFGS on an adjoint. Where they are not, the search still ends at the boxes' own solution if the
    objective can come near zero. Parts of a field that the observations do not determine stay as they began
    if the tangent is an equation or a model of the box; a network that no row showed them moves them. So
    begin near, or add a penalty to the objective.

    Args:
        field: a `Field`, or any network of few thousand numbers.
        objective: `objective(field, batch) -> Tensor (rows,)`, as for `TangentGradient`; every evaluation has
            the same batch.
        boxes: the boxes that it calls.
        rows: the most rows of the boxes: after the first evaluation none begins that would take more.
        batch: the batch of the objective; None for one row, `torch.zeros(1, 1)`.
        tangent: as for `TangentGradient`. None is for a `KernelTangent` where no layout is said or seen, and
            for `AutoTangent` elsewhere. For a box that moves a state on, on a periodic grid of at most 4,096
            cells, None adds an `EquationTangent` beside it: the one that foretold the last moves better is
            used, see `zo.tangents.models.foretold`.
        inner: the most iterations of L-BFGS between evaluations.
        tolerance: a loss that is low enough.
        seed: the seed of the tangents' draws, and of changes about the field.
        evaluated: a function that is called with the loss of each evaluation, with the field as evaluated.

    Returns:
        The result, see `FieldFit`. The field has the values of the least loss, also where it raises.

    Raises:
        ConfigurationError, ParameterError: a value is out of range.
        FailedQueriesError, RowFailedError: the boxes fail where the field begins. A later move to where they
            fail, or fail for more rows of the batch than there, is shortened and undone like one that raised
            the loss. A `TangentWarning` says so the first time, and also if the search ends after one
            evaluation, whose answers show no derivative.
        BudgetError: a box's own budget is spent before the first evaluation.
        ObjectiveError, TangentError: see `TangentGradient.backward`.
    """
    check_count("fit_field", "rows", rows)
    check_count("fit_field", "inner", inner)
    check_number("fit_field", "tolerance", tolerance, least=0)
    if tangent is None and all(isinstance(box, BlackBoxFunction) for box in boxes):
        tangent = [_default(box, seed) for box in boxes]
    gradient = TangentGradient(
        field,
        objective,
        boxes=boxes,
        tangent=tangent,
        seed=seed,
        limits=Limits(  # each evaluation is a check
            replays=inner, max_age=1, clip=None, excite=0, check_every=None, outliers=False
        ),
    )
    gradient.notices.settle("unidentified")  # rows differ from evaluation to evaluation
    search = _Search(gradient, torch.zeros(1, 1) if batch is None else batch, rows, evaluated)
    kernels = [model for model in gradient.tangents if isinstance(model, KernelTangent)]
    draws = torch.Generator().manual_seed(seed) if len(kernels) == len(gradient.tangents) else None
    informed = any(model.prior is not None or model.knows for model in kernels)
    return search.run(inner, tolerance, draws, informed)


def _default(box: BlackBoxFunction, seed: int) -> Tangent:
    """The tangent of a box: a kernel where its arrays have no layout, and no more numbers than it is for."""
    specs = Specs.of(box)
    learned = sum(math.prod(spec.shape) for spec in specs.outputs if spec.learned)
    if specs.structure.kind == "table" and learned <= LARGEST:
        return KernelTangent()
    return ForetoldTangent(box, seed)


def _step(values: Tensor, begun: Tensor) -> float:
    """The size of a first change to a field's values; decision 233.

    Args:
        values: an array of the field where changes begin.
        begun: the array with which the search began.
    """
    moved, spread = (float(numbers.std(correction=0)) for numbers in (values - begun, values))
    size = float(values.abs().mean()) or 1.0
    varied = moved or spread
    return NEAR * varied if varied > SAME * size else SLIGHT * size


class _Search:
    """One search: the gradient, what was spent, and where the field is best."""

    def __init__(
        self, gradient: TangentGradient, batch: Batch, rows: int, evaluated: Callable[[float], None] | None
    ) -> None:
        self.gradient, self.batch, self.most, self.evaluated = gradient, batch, rows, evaluated
        self.weights = gradient.parameters.tensors
        self.losses: list[float] = []
        self.best, self.at = math.inf, self._copy()
        self.begun_at, self.looked = self.at, math.inf  # where it began, and the best loss after draws
        self.begun = self._rows_run()
        self.cost, self.lost = 0, 0  # rows of an evaluation; rows of the batch that failed in the first one

    def run(self, inner: int, tolerance: float, draws: torch.Generator | None, informed: bool) -> FieldFit:
        """Moves and evaluations, until one of the three ends; before them, draws about the start.

        Args:
            inner: the most iterations between evaluations.
            tolerance: a loss that is low enough.
            draws: the generator of random changes; None for a search that never looks around.
            informed: whether a tangent knows a derivative from the start, so that no look around begins.
        """
        iterations, gave_way, why = inner, False, ""
        try:
            self._first()
            if draws is not None and not informed:
                self._look_around(draws, tolerance)
            while not why:
                if self.best <= tolerance:
                    why = "tolerance"
                    break
                if not self._affordable():
                    why = "rows"
                    break
                at, best = self.at, self.best
                self._move(iterations, best)
                moved = self._copy()
                stays = all(torch.equal(start, end) for start, end in zip(at, moved, strict=True))
                for _ in range(0 if stays else 1 + TRIES):
                    if not self._affordable():
                        why = "rows"
                        break
                    if self._evaluate() < best:
                        iterations, gave_way = min(2 * iterations, inner), False
                        break
                    moved = [start + SHORTER * (end - start) for start, end in zip(at, moved, strict=True)]
                    self._put(moved)
                else:
                    self._put(at)
                    if iterations == 1 and (gave_way or not self._contested()):
                        if draws is not None and self.best < LOWER * self.looked and self._affordable():
                            self._look_around(draws, tolerance)
                            iterations = inner
                            continue
                        why = "stalled"
                        if len(self.losses) == 1:
                            self._warn_of_nothing_shown()
                        break
                    if not stays:
                        if not self._affordable():
                            why = "rows"
                            break
                        self._evaluate()  # replays begin at what the boxes answer here
                    if gave_way or not self._give_way():
                        iterations = max(1, int(SHORTER * iterations))
                    gave_way = True
        except BudgetError:  # a box has a bound of its own
            if not self.losses:
                raise
            why = "rows"
        finally:
            self._put(self.at)
        return FieldFit(self.best, tuple(self.losses), self._spent(), why, self.gradient)

    def _first(self) -> None:
        """Evaluate where the field begins."""
        loss = float(self.gradient.backward(self.batch))
        self.cost, self.lost = self._spent(), self.gradient.counts.lost
        self.gradient.replays()  # from now on windows are kept
        self._note(loss)

    def _look_around(self, draws: torch.Generator, tolerance: float) -> None:
        """Evaluate at random changes of the best field, as many as it has numbers, for half of the rows."""
        steps = [_step(values, begun) for values, begun in zip(self.at, self.begun_at, strict=True)]
        numbers, factor, at = sum(values.numel() for values in self.at), 1.0, self.at
        evaluations_left = (self.most - self._spent()) // max(1, self.cost)
        many = min(numbers, (evaluations_left - 1) // 2)  # after them comes the best field again
        for _ in range(many):
            if self.best <= tolerance:
                return
            noise = [torch.randn(values.shape, generator=draws, dtype=values.dtype) for values in at]
            changes = [factor * step * white.to(v) for v, step, white in zip(at, steps, noise, strict=True)]
            self._put([values + change for values, change in zip(at, changes, strict=True)])
            try:
                arrived = math.isfinite(self._evaluate())
            except NonFiniteGradientError:  # of this draw; where it begins or arrives it is an error
                self._note(math.inf)
                arrived = False
            factor = min(1.0, 2 * factor) if arrived else SHORTER * factor
        if many > 0:
            self._put(self.at)
            self._evaluate()  # replays begin at what the boxes answer here
        self.looked = self.best

    def _evaluate(self) -> float:
        """The loss by the boxes; infinite where they fail, for a mean over fewer rows may be low."""
        lost_before, why = self.gradient.counts.lost, ""
        try:
            loss = float(self.gradient.backward(self.batch))
            lost = self.gradient.counts.lost - lost_before
            if lost > self.lost:
                loss, why = math.inf, f"{lost} of {count_rows(self.batch)} rows of the batch failed."
        except NonFiniteGradientError:
            raise
        except (FailedQueriesError, RowFailedError) as error:
            loss, why = math.inf, str(error)
        if why and math.inf not in self.losses:
            warn(f"fit_field: a move went to where a box fails; it is shortened. {why}", TangentWarning)
        self._note(loss if math.isfinite(loss) else math.inf)
        return self.losses[-1]

    def _note(self, loss: float) -> None:
        self.losses.append(loss)
        if loss < self.best:
            self.best, self.at = loss, self._copy()
        if self.evaluated is not None:
            self.evaluated(loss)

    def _move(self, iterations: int, loss: float) -> None:
        """L-BFGS on what was recorded last, as the tangents have it near there."""
        rows = count_rows(self.batch)
        optimizer = torch.optim.LBFGS(
            self.weights,
            max_iter=iterations,
            max_eval=2 * iterations + 1,
            tolerance_grad=0,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            optimizer.zero_grad()
            replayed = float(self.gradient.replay(rows=rows))
            return replayed if math.isfinite(replayed) else FAR * max(loss, 1e-30)

        optimizer.step(closure)

    def _warn_of_nothing_shown(self) -> None:
        """Say that not even the first move changed anything."""
        same = all(bool((weight == weight.flatten()[:1]).all()) for weight in self._copy())
        which = ", which is the same everywhere" if same else ""
        warn(
            "fit_field: the boxes' answers so far show no derivative with respect to the field"
            f"{which}, so no move was tried. Begin at a field that varies, give several rows that differ as "
            "batch=, or name a tangent= that knows more of the boxes.",
            TangentWarning,
        )

    def _contested(self) -> list[ForetoldTangent]:
        """The tangents that have a second model."""
        tangents = (tangent for tangent in self.gradient.tangents if isinstance(tangent, ForetoldTangent))
        return [tangent for tangent in tangents if tangent.equation is not None]

    def _give_way(self) -> bool:
        """Have the other model of each box make the next move, where there is one."""
        return any([tangent.give_way() for tangent in self._contested()])

    def _affordable(self) -> bool:
        return self._spent() + self.cost <= self.most

    def _spent(self) -> int:
        return self._rows_run() - self.begun

    def _rows_run(self) -> int:
        return sum(box.ledger.rows_run for box in self.gradient.boxes)

    def _copy(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)
