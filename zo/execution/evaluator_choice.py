"""The choice of an evaluator, decided by a check, and of the number of queries run together, by sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from blackbox.notices import warn
from blackbox.registered import registered
from zo.errors import ConfigurationError, EvaluatorWarning
from zo.evaluators.evaluator import Changes, Evaluator, Step
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.execution.base import Base
from zo.execution.evaluator_check import Remember, fault_of, truth_of
from zo.objective import Closed, Objective, OutputLoss
from zo.perturbation import Perturbation, Perturbations

# Where the evaluators that ship are; packages add more by entry points of the group `zo.evaluators`.
SHIPPED = {
    "loop": "zo.evaluators.loop:Loop",
    "stacked": "zo.evaluators.stacked:Stacked",
    "difference": "zo.evaluators.difference.difference_evaluator:Difference",  # a shelf
}
MEMORY = 2**30  # bytes that a stack may take
MOST = 128  # queries in a chunk; from some thirty on a CPU gains nothing more
LEAST = 16  # below, a batched solver and the layers' own overhead want more
# On a CPU tensors far beyond the cache are written to memory and read back by every layer: on 32 x 64 a
# chunk of 96 wake queries took 1.6 times as long as two of 48.
CACHED = 64 * 2**20
LARGE = 2**19  # of a base evaluation's bytes, beyond which directions are evaluated one by one
UNCHECKED = ", unchecked"  # behind a name, in a state
MANY = 16  # chunks, where queries of early layers cost more: of fewer the first would be waited for
SMALLEST = 16  # queries of a chunk, below which overhead costs more than a second process saves


def candidates(chosen: str | Evaluator, objective: Objective) -> tuple[Evaluator, ...]:
    """The evaluators that may serve, the fastest first; the last one is `Loop`, which always can.

    Args:
        chosen: A name, or an evaluator of the user's own.
        objective: The objective that they are to evaluate.

    Raises:
        ConfigurationError: The name is unknown; or a stack for a closure, which has no batch to repeat.
    """
    by_name: Mapping[str, type[Evaluator]] = registered("zo.evaluators", SHIPPED)
    closed = isinstance(objective, Closed)
    if chosen == "auto":
        first = () if closed else (kind for kind in by_name.values() if kind.by_default(objective))
        evaluator = next(iter(first), Loop if closed else Stacked)()
    elif isinstance(chosen, Evaluator):
        evaluator = chosen
    elif isinstance(chosen, str) and chosen in by_name:
        evaluator = by_name[chosen]()
    else:
        raise ConfigurationError(
            f"LossGradient, evaluator: expected 'auto', {', '.join(map(repr, by_name))} or an Evaluator, got "
            f"{chosen!r}."
        )
    if closed and evaluator.needs_batch:
        raise ConfigurationError(
            f"LossGradient, evaluator: expected 'loop' for a closure without arguments, got {chosen!r}, "
            "which needs a batch to repeat. Make it an objective(network, batch)."
        )
    behind = (Stacked(),) if evaluator.needs_batch and not isinstance(evaluator, Stacked) else ()
    return (Loop(),) if isinstance(evaluator, Loop) else (evaluator, *behind, Loop())


@dataclass(frozen=True)
class Serving:
    """The evaluator of each kind of queries; decided by the check, and from then on a record.

    It is decided by itself for coordinates and for directions, in training and in evaluation mode, since
    these take different ways through a fast evaluator.

    Attributes:
        evaluators: The evaluators that may serve, the fastest first, `Loop` last.
        numbers: The place of the serving evaluator among them, by the kind of queries; the evaluators before
            it have been found wrong.
        unchecked: Kinds whose evaluator is to be checked before the next step.
    """

    evaluators: tuple[Evaluator, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()

    def is_open(self, training: bool) -> bool:
        """Say whether something is to be decided before a step in this mode of the network."""
        kinds = [kind for kind in self.numbers if kind.endswith(_mode(training))]
        return not kinds or any(kind in self.unchecked for kind in kinds)

    def serves(self, queries: Perturbation, step: Step) -> Evaluator:
        """Return the evaluator for some queries of a step: `Loop` where nothing was decided."""
        number = self.numbers.get(_kind(queries, step.network.training), len(self.evaluators) - 1)
        return self.evaluators[number]

    def by_loop(self) -> Serving:
        """`Loop` alone, as for a step whose evaluator was found wrong."""
        return Serving(self.evaluators[-1:])

    def checked(self, base: Base, plan: Perturbations, chunk: int, remember: Remember) -> Serving:
        """Check what serves the kinds of queries in a plan; what fails gives way to the next one."""
        numbers, training = dict(self.numbers), base.step.network.training
        ends = plan.chunk(0, min(2, plan.queries)), plan.chunk(plan.queries - 1, plan.queries)
        for example in {type(queries): queries for queries in reversed(ends)}.values():
            kind = _kind(example, training)
            is_served = self.evaluators[0].serves(type(example))  # or else the next ones take its place
            if kind not in numbers and not is_served and _too_large(base):
                numbers[kind] = len(self.evaluators) - 1
            else:
                numbers[kind] = self._right(kind, example, base, min(chunk, plan.queries), remember)
        return replace(self, numbers=numbers, unchecked=self.unchecked - set(numbers))

    def found_wrong(self, training: bool, fault: str) -> Serving:
        """Replace the evaluators that served in this mode by the next ones, with a warning why."""
        numbers, last = dict(self.numbers), len(self.evaluators) - 1
        for kind, number in self.numbers.items():
            if kind.endswith(_mode(training)) and number < last:
                _warn(self.evaluators[number], fault, self.evaluators[last], "for this step")
                numbers[kind] = number + 1
        unchecked = {kind for kind in numbers if numbers[kind] != self.numbers[kind] < last - 1}
        return replace(self, numbers=numbers, unchecked=self.unchecked | unchecked)

    def state_dict(self) -> dict[str, str]:
        """The name of the serving evaluator, by the kind of queries, and whether it needs a check."""
        return {
            kind: type(self.evaluators[number]).__name__ + (UNCHECKED if kind in self.unchecked else "")
            for kind, number in self.numbers.items()
        }

    def loaded(self, state: Mapping[str, str]) -> Serving:
        """The record that `state_dict` gave.

        Raises:
            ConfigurationError: It names an evaluator that is not among these.
        """
        places = {type(evaluator).__name__: number for number, evaluator in enumerate(self.evaluators)}
        names = {kind: name.removesuffix(UNCHECKED) for kind, name in state.items()}
        unknown = sorted(set(names.values()) - set(places))
        if unknown:
            raise ConfigurationError(
                f"LossGradient, evaluator: expected the state of a run with one of {', '.join(places)}, got "
                f"one with {', '.join(unknown)}. Make it with that evaluator, or start anew."
            )
        unchecked = frozenset(kind for kind in state if state[kind] != names[kind])
        return replace(
            self, numbers={kind: places[name] for kind, name in names.items()}, unchecked=unchecked
        )

    def _right(self, kind: str, example: Perturbation, base: Base, chunk: int, remember: Remember) -> int:
        """The place of the first evaluator, from the one that serves on, that agrees with `loop`."""
        begins, first = self.numbers.get(kind, 0), kind not in self.numbers or kind in self.unchecked
        able = [
            number
            for number, evaluator in enumerate(self.evaluators)
            if number >= begins and evaluator.serves(type(example))
        ]
        step, truths = base.step, {}
        for number, following in pairwise(able):
            first = first or number > begins  # one that takes over was never checked
            if first not in truths:
                truths[first] = truth_of(step, base.losses, example, chunk, remember, first=first)
            fault = fault_of(self.evaluators[number], step, base.losses, truths[first], remember)
            if fault is None:
                return number
            _warn(self.evaluators[number], fault, self.evaluators[following], "from here on")
        return able[-1]

    def __repr__(self) -> str:
        """Name the evaluators that serve, or that may."""
        names = dict.fromkeys(self.state_dict().values()) or map(repr, self.evaluators)
        return " or ".join(names)


@dataclass(frozen=True)
class Decision:
    """The decision on a step before its pieces are evaluated.

    Attributes:
        serving: The evaluators of the queries, as their state.
        noise: How far two evaluations of the base were apart; None if it was evaluated once.
        known: Numbers of pieces from the journal.
    """

    serving: Mapping[str, str] = field(default_factory=dict)
    noise: float | None = None
    known: Mapping[int, Tensor] = field(default_factory=dict)


class StepEvaluators:
    """The evaluators of a step, each begun once, at the first query that it serves.

    Args:
        serving: The evaluator of each kind of queries.
        base: The step's base evaluation.
    """

    def __init__(self, serving: Serving, base: Base) -> None:
        self.serving, self._base = serving, base
        self._changes: dict[int, Changes] = {}  # by the identity of the evaluator

    def for_queries(self, queries: Perturbation) -> tuple[Evaluator, Changes]:
        """The evaluator that serves some queries, and the function that it evaluates them by."""
        evaluator = self.serving.serves(queries, self._base.step)
        if id(evaluator) not in self._changes:
            self._changes[id(evaluator)] = evaluator.begin(self._base.step, self._base.losses)
        return evaluator, self._changes[id(evaluator)]


def _too_large(base: Base) -> bool:
    """Say whether stacked directions fall out of a CPU's caches, with no black box to gain by them.

    The layers' own work then hides the overhead that a pass saves.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in base.step.parameters.tensors)
    return on_cpu and isinstance(base.step.objective, OutputLoss) and base.peak > LARGE


def chunk_size(evaluators: tuple[Evaluator, ...], base: Base, plan: Perturbations) -> tuple[int, int | None]:
    """Return the number of queries in a chunk, equal for all of an even number of chunks, and in a stack.

    With one chunk a second process would have nothing to do, and with three one process would wait. The
    number of processes does not matter here, since other chunks round differently.

    Args:
        evaluators: The evaluators that may serve; all of them must find room.
        base: The step's base, with the memory that it took.
        plan: The queries of the step.

    Returns:
        Queries of a chunk, and how many of them may run on rows of their own at once, None for all: on a GPU
        one that finds room itself wants longer chunks than a stack has room for.
    """
    last = plan.chunk(plan.queries - 1, plan.queries)  # of the kind that takes most
    able = [evaluator for evaluator in evaluators if evaluator.serves(type(last))]
    per_query = max(evaluator.bytes_per_query(base.step, last, base.peak) for evaluator in able)
    device = base.step.parameters.tensors[0].device
    most = stack = queries_within(MEMORY, per_query, device)
    if able[0].most_on_gpu is not None:
        if device.type != "cpu":
            most = able[0].most_on_gpu
        most = min(most, max(SMALLEST, -(-plan.queries // MANY)))
    chunks = -(-plan.queries // most)
    chunks += chunks % 2
    even = -(-plan.queries // chunks)
    chunk = even if even >= SMALLEST else most
    return chunk, stack if stack < chunk else None


def queries_within(memory: int, per_query: int, device: torch.device) -> int:
    """Return how many queries run together: as many as fit, but at least one and at most `MOST`.

    Args:
        memory: Bytes that a chunk may take.
        per_query: Bytes that a query takes.
        device: On a CPU a chunk also stays near the cache's size, unless it had fewer than `LEAST` then.
    """
    fit = memory // max(1, per_query)
    if device.type == "cpu":
        fit = min(fit, max(LEAST, CACHED // max(1, per_query)))
    return max(1, min(MOST, fit))


def _warn(wrong: Evaluator, fault: str, following: Evaluator, what: str) -> None:
    mend = ""
    if isinstance(following, Loop):
        mend = (
            " Variants need rows first in every layer, random draws by nn.Dropout and its like, and no mean "
            "over the rows of a batch but in nn.BatchNorm."
        )
    warn(
        f"Evaluator {type(wrong).__name__} {fault}: {type(following).__name__.lower()} is used {what}, right "
        f"but slower.{mend}",
        EvaluatorWarning,
    )


def _kind(queries: Perturbation, training: bool) -> str:
    return f"{type(queries).__name__}{_mode(training)}"


def _mode(training: bool) -> str:
    return ", training" if training else ", evaluation"
