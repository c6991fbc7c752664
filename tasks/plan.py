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
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from blackbox.words import counted
from tasks import problems, trial
from tasks.configuration import refused
from tasks.errors import ConfigurationError, ProblemError
from tasks.folder.terms import Terms, check_seeds
from tasks.method import Cost, Method
from tasks.methods import named
from tasks.problem import Problem
from tasks.trial import TRIES, Sizes, Trial

SMALLER = 4  # times as small as usual is the batch
VALIDATIONS, SHARE = 12, 0.2  # of a training at most, and of the budget; two at least
KEPT = 0.05  # of the budget is kept back, for rows that a kill makes the run ask for again
MOST_STEPS = 2**40
MOST_OF_ALL = 0.5  # of the rows of training: a method that takes more leaves the others few steps
LEFT = ("steps", "validate_every")  # settings that the run chooses, which knows what a row of data costs


@dataclass(frozen=True)
class Plan:
    """What a run will do, as a value.

    Attributes:
        problem: That is trained, with its settings.
        seeds: One training of each method for each.
        methods: By name, in their order.
        preset: The preset that the settings started from; "own" for none.
        where: Where the problem's class is, as `problems.find` takes it; "" for a notebook's.
        chosen: Settings that follow from the budget of rows; None until the plan is `settled`.
        aside: What is to be said of how they were chosen, in words.
        rows: What it asks boxes for; None until it is settled, and where `instead` says why.
        instead: What is said of the cost where rows are not known.
        trial: What the first batch took, where it was tried.
    """

    problem: Problem
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    preset: str
    where: str
    chosen: Mapping[str, int | None] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    rows: Rows | None = None
    instead: tuple[str, ...] = ()
    trial: Trial = field(default_factory=Trial)

    @property
    def config(self) -> Any:
        """The settings."""
        return self.problem.config

    @property
    def terms(self) -> Terms:
        """What a folder has of it in writing."""
        return Terms(
            task=self.problem.name(),
            preset=self.preset,
            config=self.config,
            seeds=self.seeds,
            data=self.problem.folder,
            problem=self.where,
            chosen=self.chosen,
        )

    @property
    def total(self) -> int:
        """The least rows of the run, with those that have made its data and those that were timed."""
        assert self.rows is not None
        return self.rows.made + len(self.seeds) * self.rows.least + self.trial.spent.rows_run

    def check(self) -> None:
        """Have the problem refuse settings that do not go with data or network, before its boxes are made."""
        problem = self.problem
        with problem.ledger.unwritten(lambda: list(problem.boxes.values()) if "box" in vars(problem) else []):
            problem.check()

    def settled(self, *, timed: bool) -> Plan:
        """The plan with its rows and with settings that follow from its budget, when boxes can be asked.

        Args:
            timed: Whether to run a batch's rows to see how long they take, where the budget has room for it.

        Raises:
            ConfigurationError: A method cannot train with these settings, or these boxes; or the run takes
                more rows than its budget has, or steps are to follow from one without room for a step of each
                method: none was run, but for the data.
        """
        problem = self.problem
        for method in self.methods.values():  # a network may ask for data, and these for rows
            if method.check is not None:
                with torch.random.fork_rng(devices=()):
                    method.check(problem)
        asked, chosen, aside = trial.asked(problem, len(self.seeds)), self.chosen, ()
        if None in chosen.values():
            chosen = {name: getattr(self.config, name) for name in chosen}
            if asked.sizes is not None:
                within, aside = _within_the_budget(self, asked.sizes, asked.made)
                chosen |= within
            problem.config = replace(self.config, **chosen)
        plan = replace(self, chosen=chosen, aside=aside, instead=asked.instead)
        if asked.sizes is None:
            return plan
        plan = replace(plan, rows=_rows(problem, self.methods, asked.sizes, asked.made))
        if not plan._has_room(0):
            raise plan._beyond_the_budget()
        # the rows that are timed count too, and must not be those that the end of the run needs
        tried = timed and not problem.has_no_box() and plan._has_room(TRIES * asked.sizes.objective)
        return replace(plan, trial=trial.timed(problem)) if tried else plan

    def _has_room(self, more: int) -> bool:
        """Whether the budget has so many rows more than the plan takes."""
        return self.config.rows is None or self.total + more <= self.config.rows

    def _beyond_the_budget(self) -> ConfigurationError:
        assert self.rows is not None
        rows, made = self.rows, self.rows.made
        steps = ", ".join(f"{name} {count:,}" for name, count in rows.steps.items() if count)
        was = "was" if made == 1 else "were"
        run = f"{counted(made, 'row')} {was} run, to make the data." if made else "No row was run."
        return ConfigurationError(
            f"rows: expected a run within its budget of {counted(self.config.rows, 'row')}, got a plan of at "
            f"least {self.total:,} in {counted(len(self.seeds), 'seed')} of: {steps}; validation and test "
            f"{rows.judging:,}. {run} "
            "Raise --rows, or lower --steps, --batch, or the methods' settings."
        )


def plan_of(
    problem: Problem,
    seeds: Sequence[int],
    *,
    preset: str | None = None,
    where: str | None = None,
    by_hand: Collection[str] | None = None,
    chosen: Mapping[str, int | None] | None = None,
) -> Plan:
    """The plan of a run of a problem, if its settings go with it; the problem is asked for nothing yet.

    Args:
        problem: With its settings.
        seeds: One training of each method for each.
        preset: The one that the settings started from; if None, the one that they are.
        where: Where the problem's class is; if None, where it says that it is.
        by_hand: Names of the settings that the user set to their usual values, for a new run: of those that
            are not set some may follow from a budget of rows.
        chosen: Settings of a run that goes on which follow from its budget; None for those it has not chosen.

    Raises:
        ConfigurationError: A method is unknown, or settings do not go with each other, or seeds are none.
        ProblemError: There is no such device.
    """
    if by_hand is not None:
        config, left = _left_to_the_budget(problem, by_hand)
        problem, chosen = type(problem)(config, folder=problem.folder), dict.fromkeys(left)
    config = problem.config
    check_seeds(seeds)
    _refuse_missing_device(config.device)
    methods = named(problem, config.methods)
    if config.rows is not None and problem.has_no_box():
        raise refused(
            "rows", "None for a problem without a black box, whose rows nothing bounds", config.rows
        )
    if preset is None:
        preset = next((name for name, known in problem.presets.items() if known == config), "own")
    where = problems.where_is(type(problem)) if where is None else where
    return Plan(problem, tuple(map(int, seeds)), methods, preset, where, dict(chosen or {}))


def _left_to_the_budget(problem: Problem, by_hand: Collection[str]) -> tuple[Any, tuple[str, ...]]:
    """The settings of a run that is given rows: those that can be chosen at once, and names of the others.

    Args:
        problem: With its settings.
        by_hand: Names of those that the user set, beside those that are not the usual ones; without `rows` or
            with `steps` nothing is chosen.
    """
    settings, usual = problem.config, type(problem).Config()
    names = [each.name for each in fields(usual)]
    by_hand = {*by_hand, *(name for name in names if getattr(usual, name) != getattr(settings, name))}
    if problem.presets or getattr(settings, "rows", None) is None or "steps" in by_hand:
        return settings, ()
    changed: dict[str, Any] = {"batch": max(1, settings.batch // SMALLER), "replays": None, "max_rows": 1.0}
    changed = {name: value for name, value in changed.items() if name not in by_hand}
    return replace(settings, **changed), tuple(name for name in LEFT if name not in by_hand)


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


def _within_the_budget(plan: Plan, sizes: Sizes, made: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """As many steps as the budget allows, with room for all checks of queries.

    Args:
        plan: With a budget; it leaves `steps` and perhaps other settings to be chosen.
        sizes: Of what is asked for at once.
        made: Rows that were run to make the data.

    Returns:
        The settings that are chosen, none where the rows of a problem are not known beforehand or steps take
        none; and what is to be said of them. A validation or test of the problem's own is supposed to take
        each row of its data once, as the objective does.

    Raises:
        ConfigurationError: There is no room for a step of each method, with its checks.
    """
    problem, config, seeds = plan.problem, plan.config, len(plan.seeds)
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
