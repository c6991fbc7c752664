"""`Plan`: the work of a run, as a value. Methods, seeds and settings are in it before any box is made.

What takes a look at boxes and data comes when a run is carried out (`tasks.planning.spending.settled`): rows,
the time of the first batch, whose rows are run for it, and the settings that follow from these.

Given rows or minutes and no number of steps, a run spends them as well as it knows: it trains by `POPULATION`
in batches of one row, or of eight where a loss calls a box once, and takes as many steps as there is room
for. What is set by hand stays. Of a problem with presets, whose settings go with each other, all stay, but
that a preset's steps become fewer where the budget has no room for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from blackbox.checks import nearest
from tasks.errors import ConfigurationError, ProblemError
from tasks.folder.terms import Terms, check_seeds
from tasks.planning.trial import Rehearsal, Sizes, Trial
from tasks.problem import problems
from tasks.problem.class_code import class_digest
from tasks.problem.method import Cost, Method
from tasks.problem.problem import Problem

POPULATION = "population"  # the method that spends a budget; see decision 187
FOR_ROWS: Mapping[str, Any] = {"methods": ("none", POPULATION), "batch": 1, "replays": None}
LEFT = (
    "batch",
    "steps",
    "validate_every",
    "rates",
)  # settings that the run chooses, which knows what a row takes
BY_TIME = ("surrogate",)  # those that it chooses where minutes bound what it computes


@dataclass(frozen=True)
class Plan:
    """The work of a run, as a value.

    Attributes:
        problem: The problem, with its settings: the user's declaration, before anything of it is made.
        seeds: The seeds; with each of them, every method is trained once.
        methods: The methods by name, in their order.
        preset: The preset that the settings started from; "own" for none.
        where: The place of the problem's class, as `problems.find` takes it; "" for a notebook's.
        chosen: Settings that follow from the budget; None until the plan is `settled`.
        aside: Sentences on how they were chosen.
        rows: The rows that it asks of boxes; None until it is settled, and where `instead` says why.
        instead: Sentences on the cost where rows are not known.
        trial: The trial on the first batch, where there was one.
        work: The computing of methods with a learned model beside the boxes, by name, where that was tried;
            None for a method that a few steps do not show.
    """

    problem: Problem
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    preset: str
    where: str
    chosen: Mapping[str, Any] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    rows: PlannedRows | None = None
    instead: tuple[str, ...] = ()
    trial: Trial = field(default_factory=Trial)
    work: Mapping[str, Rehearsal | None] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The settings."""
        return self.problem.config

    @property
    def is_open(self) -> bool:
        """True if settings that follow from its budget are still to be chosen."""
        return None in self.chosen.values()

    def choosing(self, settings: Mapping[str, Any], aside: Sequence[str] = ()) -> Plan:
        """The plan with settings that follow from its budget, once all of them are known.

        Args:
            settings: The settings of `chosen`.
            aside: Sentences on how they were chosen.
        """
        has_costs = None not in settings.values()
        problem = self.problem.with_settings(**settings) if has_costs else self.problem
        return replace(self, problem=problem, chosen=dict(settings), aside=tuple(aside))

    def without(self, names: Collection[str]) -> Plan:
        """The plan without some of its methods.

        Raises:
            ConfigurationError: It has no such method, or no other one.
        """
        for name in names:
            if name not in self.methods:
                raise ConfigurationError(
                    f"--without: expected methods of the run, got {name!r}. {nearest(name, self.methods)}"
                )
        methods = {name: method for name, method in self.methods.items() if name not in names}
        if not methods:
            raise ConfigurationError(
                "--without: expected to leave some method, got all. Leave one out of it."
            )
        return replace(self, methods=methods)

    @property
    def terms(self) -> Terms:
        """The written terms of it in a folder."""
        return Terms(
            task=self.problem.name(),
            preset=self.preset,
            config=self.config,
            seeds=self.seeds,
            data=self.problem.folder,
            problem=self.where,
            chosen=self.chosen,
            code=class_digest(type(self.problem)),
        )

    @property
    def total(self) -> int:
        """The least rows of the run, with those that have made its data and those that were timed."""
        assert self.rows is not None
        return self.rows.made + len(self.seeds) * self.rows.least + self.trial.aside


def plan_of(
    problem: Problem,
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    *,
    preset: str | None = None,
    where: str | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a run of a problem, if its settings suit it; the problem is asked for nothing yet.

    Args:
        problem: The problem with its settings.
        methods: The methods that its settings name, see `methods.by_name.methods_named`.
        seeds: The seeds; with each of them, every method is trained once.
        preset: The preset that the settings started from; if None, the one that equals them.
        where: The place of the problem's class; if None, its own.
        chosen: Settings that follow from the budget, see `left_to_the_budget`; None for each that has not
            been chosen.

    Raises:
        ConfigurationError: Settings contradict each other, or a seed is none.
        ProblemError: There is no such device.
    """
    config = problem.config
    check_seeds(seeds)
    _refuse_missing_device(config.device)
    if config.rows is not None and problem.has_no_box():
        raise ConfigurationError(
            f"rows: expected None for a problem without a black box, whose rows nothing bounds, got "
            f"{config.rows}. Leave --rows out."
        )
    if preset is None:
        preset = next((name for name, usual in problem.presets.items() if usual == config), "own")
    where = problems.where_is(type(problem)) if where is None else where
    return Plan(problem, tuple(map(int, seeds)), methods, preset, where, dict(chosen or {}))


def left_to_the_budget(
    problem: Problem, preset: str | None, by_hand: Collection[str]
) -> tuple[Problem, dict[str, None]]:
    """Set the settings that a budget chooses at once in a problem of a new run, and name the others.

    Args:
        problem: The problem with its settings.
        preset: The preset that these started from; None where that is not known.
        by_hand: Names of the settings that the user set, beside unusual ones; without `rows` and `minutes`,
            or with `steps`, nothing is chosen.
    """
    settings, presets = problem.config, problem.presets
    named = None if preset is None else presets.get(preset)
    usual = [type(problem).Config(), *presets.values()] if named is None else [named]
    departing = {
        setting.name
        for setting in fields(type(problem).Config)
        if all(getattr(start, setting.name) != getattr(settings, setting.name) for start in usual)
    }
    by_hand = {*by_hand, *departing}
    if (getattr(settings, "rows", None) is None and settings.minutes is None) or "steps" in by_hand:
        return problem, {}
    names = LEFT if settings.minutes is None else (*LEFT, *BY_TIME)
    open_settings = [name for name in names if name not in by_hand]
    if problem.has_no_box():
        return problem, {"steps": None}
    if presets:
        return problem, dict.fromkeys(name for name in open_settings if name in ("steps", "validate_every"))
    settings = replace(settings, **{name: FOR_ROWS[name] for name in FOR_ROWS if name not in by_hand})
    return type(problem)(settings, folder=problem.folder), dict.fromkeys(open_settings)


@dataclass(frozen=True)
class PlannedRows:
    """Rows of a training of each method, as the settings say.

    Attributes:
        sizes: How many rows are asked for at once.
        costs: The cost by method; None where it is not known.
        steps: Box rows of steps, by method where known: the least that they take.
        most: The most box rows of steps, where checks are in doubt or trust is lost.
        validation: Box rows of all validations of a method; None for a problem's own.
        test: Box rows of the test of a method; None for a problem's own.
        judging: Box rows of validations and tests of all methods, as far as they are known.
        made: Rows that were run to make the data.
        once: Box rows of all validations of a method, and of its test, if each row of their data is asked for
            once, as by the objective; a problem's own validation and test most often take as many.
    """

    sizes: Sizes
    costs: Mapping[str, Cost | None]
    steps: Mapping[str, int]
    most: Mapping[str, int]
    validation: int | None
    test: int | None
    judging: int
    made: int
    once: Mapping[str, int]

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


def _refuse_missing_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ProblemError(
            "device: expected a GPU that torch can use, got none. Leave out --device, or take cpu."
        )
