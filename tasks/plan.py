"""`Plan`: what a run will do, decided before a row is run: its methods, seeds and settings, and their rows.

An expensive box is thought of in rows. Where a budget of them is given and no number of steps, settings
follow from it: batches are a quarter of the usual, for at equal rows small batches with more steps end at a
lower error; recorded answers are replayed as often as they are trusted, and no probes are bought where
tangents are not; and there are as many steps as the budget allows, validation and test included. What is set
by hand stays; and all of a problem with presets, whose settings go with each other.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.words import counted
from tasks import problems
from tasks.configuration import refused
from tasks.errors import ConfigurationError, ProblemError
from tasks.method import Cost, Method
from tasks.methods import named
from tasks.problem import Problem
from tasks.runs.folder import check_seeds
from zo.batches import count_rows

C = TypeVar("C")
SMALLER = 4  # times as small as usual is the batch
VALIDATIONS, SHARE = 12, 0.2  # of a training at most, and of the budget; two at least
KEPT = 0.05  # of the budget is kept back, for rows that a kill makes the run ask for again
MOST_STEPS = 2**40
MOST_OF_ALL = 0.5  # of the rows of training: a method that takes more leaves the others few steps
LEFT = ("steps", "validate_every")  # settings that the run chooses, which knows what a row of data costs
TRIES = 5  # evaluations of the objective, of which the quickest counts: the first one warms up


@dataclass(frozen=True)
class Plan:
    """What a run will do, as a value.

    Attributes:
        task: The problem's name.
        where: Where its class is, as `problems.find` takes it; "" for a notebook's.
        config: The settings.
        seeds: One training of each method for each.
        methods: By name, in their order.
        chosen: Settings that follow from the budget of rows; None until the plan is `settled`.
        aside: What is to be said of how they were chosen, in words.
        rows: What it asks boxes for; None until it is settled, and where `instead` says why.
        instead: What is said of the cost where rows are not known.
    """

    task: str
    where: str
    config: Any
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    chosen: Mapping[str, int | None] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    rows: Rows | None = None
    instead: tuple[str, ...] = ()

    def settled(self, problem: Problem) -> Plan:
        """The plan with its rows and with settings that follow from its budget, when boxes can be asked.

        Args:
            problem: That is planned; it has these settings from here on.

        Raises:
            ConfigurationError: A method cannot train with these settings, or these boxes; or settings are to
                follow from a budget without room for a step of each method.
        """
        for method in self.methods.values():  # a network may ask for data, and these for rows
            if method.check is not None:
                with torch.random.fork_rng(devices=()):
                    method.check(problem)
        made, said = problem.ledger.rows_of_data(), problem.cost(len(self.seeds))
        sizes = None if said is not None else _sizes(problem)
        config, chosen, aside = self.config, self.chosen, ()
        if None in chosen.values():
            chosen = {name: getattr(config, name) for name in chosen}
            if isinstance(sizes, Sizes):
                found, aside = _within_the_budget(problem, self, sizes, made)
                chosen |= found
            config = problem.config = replace(config, **chosen)
        plan = replace(self, config=config, chosen=chosen, aside=aside)
        if said is not None:
            return replace(plan, instead=("Cost:", *(f"  {line}" for line in said)))
        if not isinstance(sizes, Sizes):
            raised = " ".join(f"{type(sizes).__name__}: {sizes}".split()).rstrip(".")
            why = f"the objective, on zeros from its box, raised {raised}."
            return replace(plan, instead=(f"Cost: not known before the first step: {why}",))
        return replace(plan, rows=_rows(problem, self.methods, sizes, problem.ledger.rows_of_data()))


def plan_of(problem: Problem, seeds: Sequence[int], chosen: Mapping[str, int | None] | None = None) -> Plan:
    """The plan of a run of a problem, if its settings go with it; no box is made for it.

    Args:
        problem: With its settings.
        seeds: One training of each method for each.
        chosen: Settings that follow from the budget, see `left_to_the_budget`.

    Raises:
        ConfigurationError: A method is unknown, or settings do not go with each other, or seeds are none.
        ProblemError: There is no such device.
    """
    config = problem.config
    check_seeds(seeds)
    _refuse_missing_device(config.device)
    methods = named(problem, config.methods)
    if config.rows is not None and problem.has_no_box():
        raise refused(
            "rows", "None for a problem without a black box, whose rows nothing bounds", config.rows
        )
    with problem.ledger.unwritten(lambda: list(problem.boxes.values()) if "box" in vars(problem) else []):
        problem.check()
    where = problems.where_is(type(problem))
    return Plan(problem.name(), where, config, tuple(map(int, seeds)), methods, dict(chosen or {}))


def left_to_the_budget(kind: type[Problem], config: C, by_hand: Collection[str]) -> tuple[C, tuple[str, ...]]:
    """The settings of a run that is given rows: those that can be chosen at once, and names of the others.

    Args:
        kind: The problem's class.
        config: Its settings.
        by_hand: Names of those that the user set; without `rows` or with `steps` nothing is chosen.
    """
    settings: Any = config
    if kind.presets or getattr(settings, "rows", None) is None or "steps" in by_hand:
        return config, ()
    changed: dict[str, Any] = {"batch": max(1, settings.batch // SMALLER), "replays": None, "max_rows": 1.0}
    changed = {name: value for name, value in changed.items() if name not in by_hand}
    return replace(settings, **changed), tuple(name for name in LEFT if name not in by_hand)


@dataclass(frozen=True)
class Sizes:
    """What is asked for at once, in rows.

    Attributes:
        objective: Box rows of one evaluation of the objective on a batch; without boxes the batch's own.
        batch: Rows of data in a training batch.
        validation: Rows of validation data.
        test: Rows of test data.
    """

    objective: int
    batch: int
    validation: int
    test: int


def _sizes(problem: Problem) -> Sizes | Exception:
    """They, without running a row: the boxes answer with zeros; what was raised, where that cannot be."""
    if not problem.boxes:
        size = rows = count_rows(problem.training_batch(0, 0))
        return Sizes(rows, size, *map(_count, (problem.data.validation, problem.data.test)))
    with torch.random.fork_rng(devices=()):  # data may ask the boxes, which here still answer themselves
        network, batch = problem.network().to(problem.config.device), problem.training_batch(0, 0)
    size, rows = count_rows(batch), 0  # refuses what is no batch

    def answer(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
        nonlocal rows
        first = arrays[0]
        leading = tuple(first.shape[: first.ndim - len(box.inputs[0].shape)])
        rows += int(torch.Size(leading).numel())
        zeros = [
            torch.zeros(*leading, *spec.shape, dtype=first.dtype, device=first.device) for spec in box.outputs
        ]
        return zeros[0] if len(zeros) == 1 else tuple(zeros)

    try:
        with torch.random.fork_rng(devices=()), torch.no_grad(), intercepted(answer):
            problem.objective(network, batch)
    except Exception as error:  # whatever the objective does with zeros; a true fault shows in the first step
        return error
    return Sizes(rows, size, *map(_count, (problem.data.validation, problem.data.test)))


def _count(batch: Any) -> int:  # noqa: ANN401
    return 0 if batch is None else count_rows(batch)


@dataclass(frozen=True)
class Rows:
    """Rows of a training of each method, as the settings say.

    Attributes:
        sizes: Of what is asked for at once.
        costs: By method; None where that is not known.
        steps: Box rows of steps, by method where known: the least that they take.
        most: The most, where checks are in doubt or trust is lost.
        validation: Box rows of all validations of a method; None for a problem's own.
        test: Box rows of the test of a method; None for a problem's own.
        judging: Box rows of validations and tests of all methods, as far as they are known.
        made: Rows that were run to make the data.
    """

    sizes: Sizes
    costs: Mapping[str, Cost | None]
    steps: Mapping[str, int]
    most: Mapping[str, int]
    validation: int | None
    test: int | None
    judging: int
    made: int

    @property
    def least(self) -> int:
        """Box rows with one seed: of steps, validations and tests."""
        return sum(self.steps.values()) + self.judging

    @property
    def more(self) -> int:
        """Box rows that the steps may take beyond the least."""
        return sum(self.most.values()) - sum(self.steps.values())

    @property
    def with_checks(self) -> int:
        """Box rows with one seed where every check is asked, and trust in tangents is not lost."""
        return sum(self.checked.values()) + self.judging

    @property
    def checked(self) -> dict[str, int]:
        """Box rows of steps where every check is asked, and trust in tangents is not lost, by method."""
        learned = {name for name, cost in self.costs.items() if cost is not None and cost.learns}
        return {name: (self.steps if name in learned else self.most)[name] for name in self.steps}


def _rows(
    problem: Problem, methods: Mapping[str, Method], sizes: Sizes, made: int, *, supposing: bool = False
) -> Rows:
    """What the settings of a problem ask for.

    Args:
        problem: With its settings.
        methods: That will be trained.
        sizes: Of what is asked for at once.
        made: Rows that were run to make the data.
        supposing: Whether a problem's own validation or test is supposed to take each row of its data once,
            as the objective does.
    """
    config, kind = problem.config, type(problem)
    costs = {
        name: None if method.cost is None else method.cost(problem, config.steps)
        for name, method in methods.items()
    }
    known = {name: cost for name, cost in costs.items() if cost is not None}
    steps = {name: round(sizes.objective * cost.evaluations) for name, cost in known.items()}
    most = {name: round(sizes.objective * (cost.most or cost.evaluations)) for name, cost in known.items()}
    validates = kind.validate is Problem.validate or (supposing and sizes.validation)
    tests = (kind.evaluate is Problem.evaluate and kind.judge is Problem.judge) or (supposing and sizes.test)
    validations = 1 + -(-config.steps // config.validate_every)
    each = sizes.objective / sizes.batch
    validation = int(each * (validations * sizes.validation)) if validates else None
    test = int(each * sizes.test) if tests else None
    validated = sum(cost is None or cost.evaluations > 0 for cost in costs.values())
    judging = validated * (validation or 0) + len(methods) * (test or 0)
    return Rows(sizes, costs, steps, most, validation, test, judging, made)


def _within_the_budget(
    problem: Problem, plan: Plan, sizes: Sizes, made: int
) -> tuple[dict[str, int], tuple[str, ...]]:
    """As many steps as the budget allows, with room for all checks of queries.

    Args:
        problem: With its settings, a budget among them.
        plan: That leaves `steps` and perhaps other settings to be chosen.
        sizes: Of what is asked for at once.
        made: Rows that were run to make the data.

    Returns:
        The settings that are chosen, none where the rows of a problem are not known beforehand or steps take
        none; and what is to be said of them. A validation or test of the problem's own is supposed to take
        each row of its data once, as the objective does.

    Raises:
        ConfigurationError: There is no room for a step of each method, with its checks.
    """
    config, seeds = plan.config, len(plan.seeds)
    first = _rows(problem, plan.methods, sizes, made, supposing=True)
    if first.validation is None or first.test is None or None in first.costs.values():
        return {}, ()
    if not any(first.steps.values()):
        return {}, ()
    aside = made + TRIES * sizes.objective
    budget = int((1 - KEPT) * config.rows) - aside
    validations = 1 + -(-config.steps // config.validate_every)
    once = seeds * len(plan.methods) * first.validation / validations
    wanted = int(min(VALIDATIONS, max(2, SHARE * budget / once if once else VALIDATIONS)))

    def at(steps: int) -> dict[str, int]:
        settings = {"steps": steps, "validate_every": -(-steps // (wanted - 1))}
        return {name: settings[name] for name in plan.chosen}

    def rows_at(steps: int, methods: Mapping[str, Method]) -> Rows:
        tried = copy.copy(problem)
        tried.config = replace(config, **at(steps))
        return _rows(tried, methods, sizes, made, supposing=True)

    def most_steps(methods: Mapping[str, Method]) -> int:
        def fits(steps: int) -> bool:
            return seeds * rows_at(steps, methods).with_checks <= budget

        low, high = 0, 1
        while high < MOST_STEPS and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    steps = most_steps(plan.methods)
    chosen = rows_at(max(1, steps), plan.methods)
    dear = max(chosen.checked, key=lambda name: chosen.checked[name])
    others = {name: method for name, method in plan.methods.items() if name != dear}
    share = chosen.checked[dear] / sum(chosen.checked.values())
    if steps == 0:
        enough = -int(-(seeds * chosen.with_checks + aside) // (1 - KEPT))
        takes = ", ".join(f"{name} {count:,}" for name, count in chosen.checked.items() if count)
        run = f"{counted(made, 'row')} {'was' if made == 1 else 'were'} run, to make the data"
        leave = f", or leave out {dear}" if others and share > MOST_OF_ALL else ""
        raise ConfigurationError(
            f"rows: expected a run within its budget of {counted(config.rows, 'row')}, got one of at least "
            f"{enough:,}: a step of each method, with its checks, takes {takes}; validation and test "
            f"{chosen.judging:,}{', in each seed' if seeds > 1 else ''}; the rest is kept for a kill. "
            f"{run if made else 'No row was run'}. Give --rows {enough} or more{leave}."
        )
    said = ()
    if share > MOST_OF_ALL and any(chosen.checked.get(name) for name in others):
        without = most_steps(others)
        if without >= 2 * steps:
            said = (
                f"  {dear} takes {share:.0%} of the rows of training: without it the others would have "
                f"{counted(without, 'step')}, not {steps:,}. Give it a run of its own, --methods {dear}.",
            )
    return at(steps), said


def _refuse_missing_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ProblemError(
            "device: expected a GPU that torch can use, got none. Leave out --device, or take cpu."
        )
    if device == "cuda":
        # convolutions would round to 10 bits there, in which a step of mu is lost
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False  # kernels chosen by their times round differently in each run
