"""The rows that a plan spends: what its methods take, the steps that a budget of them allows, what is left.

Steps follow from a budget where neither the user nor a preset says how many there are; those of a preset are
the most that are taken, for they are what its name stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from blackbox.words import counted
from tasks.errors import ConfigurationError
from tasks.planning import trial
from tasks.planning.plan import Plan, PlannedRows
from tasks.planning.trial import TRIES, Asked, Sizes
from tasks.problem.method import Method
from tasks.problem.problem import Problem
from tasks.rows.binding import Bound

VALIDATIONS, SHARE = 12, 0.2  # of a training at most, and of the budget; two at least
KEPT = 0.05  # of the budget is kept back, for rows that a kill makes the run ask for again
STEPS_A_ROW = 100  # at most, with replays; where more fit, rows do not grow with the steps
MOST_OF_ALL = 0.5  # of the rows of training: a method that takes more leaves the others few steps


def settled(plan: Plan, bound: Bound, asked: Asked, *, timed: bool, keep: bool = False) -> Plan:
    """A plan with its rows and with settings that follow from its budget, when boxes can be asked.

    Args:
        plan: As the user asks for it.
        bound: Its problem in the run, which takes the settings over.
        asked: What the problem says of its cost, see `trial.asked`.
        timed: Whether to run a batch's rows to see how long they take, where the budget has room for it.
        keep: Whether the plan's trial is to have what the boxes answered then.

    Raises:
        ConfigurationError: The run takes more rows than its budget has, or steps are to follow from one
            without room for a step of each method: none was run, but for the data.
    """
    problem = bound.problem
    if None in plan.chosen.values():
        plan = _with_steps(plan, asked, problem)
        bound.settle(plan.chosen)
    plan = replace(plan, instead=asked.instead)
    if asked.sizes is None:
        return plan
    plan = replace(plan, rows=_rows(problem, plan.methods, asked.sizes, asked.made))
    if not _has_room(plan, 0):
        raise _beyond_the_budget(plan)
    # the rows that are timed count too, and must not be those that the end of the run needs
    tried = timed and not problem.has_no_box() and _has_room(plan, TRIES * asked.sizes.objective)
    return replace(plan, trial=trial.timed(problem, keep=keep)) if tried else plan


def _has_room(plan: Plan, more: int) -> bool:
    """Whether the budget has so many rows more than the plan takes."""
    return plan.config.rows is None or plan.total + more <= plan.config.rows


def _beyond_the_budget(plan: Plan) -> ConfigurationError:
    assert plan.rows is not None
    rows = plan.rows
    steps = ", ".join(f"{name} {count:,}" for name, count in rows.steps.items() if count)
    why = "".join(f" {sentence.strip()}" for sentence in plan.aside)
    return ConfigurationError(
        f"rows: expected a run within its budget of {counted(plan.config.rows, 'row')}, got a plan of at "
        f"least {plan.total:,} in {counted(len(plan.seeds), 'seed')} of: {steps}; validation and test "
        f"{rows.judging:,}. {_were_run(rows.made)}.{why} Raise --rows, or lower --steps, --batch, or the "
        "methods' settings."
    )


def _were_run(made: int) -> str:
    """What a refusal says of rows that are spent."""
    if not made:
        return "No row was run"
    return f"{counted(made, 'row')} {'was' if made == 1 else 'were'} run, to make the data"


def _with_steps(plan: Plan, asked: Asked, problem: Problem) -> Plan:
    """A plan with as many steps as its budget allows, with room for all checks of queries.

    Steps stay as they are set where the rows of a problem are not known beforehand, or steps take none. A
    validation or test of the problem's own is supposed to take each row of its data once, as the objective
    does.

    Args:
        plan: With a budget; it leaves `steps` and perhaps other settings to be chosen.
        asked: What the problem says of its cost.
        problem: The plan's, in the run.

    Raises:
        ConfigurationError: There is no room for a step of each method, with its checks.
    """
    config, preset = plan.config, bool(plan.problem.presets)
    # of a preset, whose settings go with each other, nothing is chosen but fewer steps where it does not fit
    as_set = {} if preset else {name: getattr(config, name) for name in plan.chosen}
    if asked.sizes is None:
        return plan.choosing(as_set)
    choice = _Choice(plan, problem, asked.sizes, asked.made)
    if not choice.known:
        said = (
            "  Steps stay as they are set, and --rows is the limit alone: what methods, validation and test "
            f"of {plan.problem.name()} take is not known beforehand.",
        )
        return plan.choosing(as_set, said if preset else ())
    if not any(choice.as_set.steps.values()):
        return plan.choosing(as_set)
    least = choice.in_all(choice.as_set.least)
    if preset and least <= config.rows:
        return plan.choosing(as_set)
    steps = choice.most_steps(plan.methods)
    if steps == choice.without_end:
        return plan.choosing(as_set)
    if steps == 0 and preset:  # which is refused for what it takes at least
        return plan.choosing(as_set)
    if steps == 0:
        raise choice.no_room()
    said = [choice.on_the_dearest(steps)]
    if preset:
        said.insert(0, f"  The preset's {counted(config.steps, 'step')} would take {least:,} rows at least.")
    return plan.choosing(choice.settings(steps), tuple(filter(None, said)))


@dataclass(frozen=True)
class _Choice:
    """How many steps a budget of rows allows.

    Attributes:
        plan: With a budget; it leaves `steps` and perhaps other settings to be chosen.
        problem: The plan's, in the run, with what it has made.
        sizes: How many rows are asked for at once.
        made: Rows that were run to make the data.
    """

    plan: Plan
    problem: Problem
    sizes: Sizes
    made: int

    def rows(self, methods: Mapping[str, Method], settings: Mapping[str, int]) -> PlannedRows:
        """What a seed of these methods takes, with some settings in the place of those of the plan."""
        return _rows(self.problem.with_settings(**settings), methods, self.sizes, self.made, supposing=True)

    @cached_property
    def as_set(self) -> PlannedRows:
        """What a seed takes with the settings of the plan."""
        return self.rows(self.plan.methods, {})

    @property
    def known(self) -> bool:
        """Whether the rows of methods, validation and test are."""
        rows = self.as_set
        return rows.validation is not None and rows.test is not None and None not in rows.costs.values()

    def settings(self, steps: int) -> dict[str, int]:
        """Those that go with so many steps."""
        settings = {"steps": steps, "validate_every": -(-steps // (self._validations - 1))}
        return {name: settings[name] for name in self.plan.chosen}

    def fits(self, methods: Mapping[str, Method], settings: Mapping[str, int]) -> bool:
        """Whether all seeds of these methods end within the budget."""
        return len(self.plan.seeds) * self.rows(methods, settings).with_checks <= self._budget

    def most_steps(self, methods: Mapping[str, Method]) -> int:
        """As many as there is room for, and no more than a preset has; 0 for none."""
        most = self.plan.config.steps if self.plan.problem.presets else self.without_end
        low, high = 0, 1
        while high <= most and self.fits(methods, self.settings(high)):
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(methods, self.settings(middle)) else (low, middle)
        return low

    @property
    def without_end(self) -> int:
        """So many steps fit where these take no more rows than fewer do."""
        return STEPS_A_ROW * max(1, self._budget)

    def in_all(self, rows: int) -> int:
        """What a run takes whose seeds take so many rows each, with all that is beside them."""
        return len(self.plan.seeds) * rows + self._aside

    def no_room(self) -> ConfigurationError:
        """The error where a step of each method does not fit; it says a budget that would do."""
        plan, rows = self.plan, self.rows(self.plan.methods, self.settings(1))
        enough = -int(-self.in_all(rows.with_checks) // (1 - KEPT))
        takes = ", ".join(f"{name} {count:,}" for name, count in rows.checked.items() if count)
        dearest, share = _dearest(rows)
        leave = f", or leave out {dearest}" if len(plan.methods) > 1 and share > MOST_OF_ALL else ""
        return ConfigurationError(
            f"rows: expected a run within its budget of {counted(plan.config.rows, 'row')}, got one of at "
            f"least {enough:,}: a step of each method, with its checks, takes {takes}; validation and test "
            f"{rows.judging:,}{', in each seed' if len(plan.seeds) > 1 else ''}; the rest is kept for a "
            f"kill. {_were_run(self.made)}. Give --rows {enough} or more{leave}."
        )

    def on_the_dearest(self, steps: int) -> str:
        """What is to be said of a method that leaves the others less than half of the steps; "" for none."""
        rows = self.rows(self.plan.methods, self.settings(steps))
        dearest, share = _dearest(rows)
        others = {name: method for name, method in self.plan.methods.items() if name != dearest}
        if share <= MOST_OF_ALL or not any(rows.checked.get(name) for name in others):
            return ""
        without = self.most_steps(others)
        if without < 2 * steps or without == self.without_end:
            return ""
        return (
            f"  {dearest} takes {share:.0%} of the rows of training: without it the others would have "
            f"{counted(without, 'step')}, not {steps:,}. Give it a run of its own, --methods {dearest}."
        )

    @property
    def _aside(self) -> int:
        """Rows of the budget that no seed gets: of making the data, and of timing a batch."""
        return self.made + TRIES * self.sizes.objective

    @property
    def _budget(self) -> int:
        """Rows for all seeds."""
        return int((1 - KEPT) * self.plan.config.rows) - self._aside

    @cached_property
    def _validations(self) -> int:
        """Of a training."""
        assert self.as_set.validation is not None
        config = self.plan.config
        validations = 1 + -(-config.steps // config.validate_every)
        trained = sum(cost is None or cost.evaluations > 0 for cost in self.as_set.costs.values())
        once = len(self.plan.seeds) * trained * self.as_set.validation / validations
        return int(min(VALIDATIONS, max(2, SHARE * self._budget / once if once else VALIDATIONS)))


def _dearest(rows: PlannedRows) -> tuple[str, float]:
    """The method that takes the most rows of training, and its share of them."""
    name = max(rows.checked, key=lambda name: rows.checked[name])
    return name, rows.checked[name] / sum(rows.checked.values())


def _rows(
    problem: Problem, methods: Mapping[str, Method], sizes: Sizes, made: int, *, supposing: bool = False
) -> PlannedRows:
    """What the settings of a problem ask for.

    Args:
        problem: With its settings.
        methods: Those that will be trained, by name.
        sizes: How many rows are asked for at once.
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
    once = {"validation": validations * sizes.validation, "test": sizes.test}
    validation = once["validation"] if validates else None
    test = once["test"] if tests else None
    validated = sum(cost is None or cost.evaluations > 0 for cost in costs.values())
    judging = validated * (validation or 0) + len(methods) * (test or 0)
    return PlannedRows(sizes, costs, steps, most, validation, test, judging, made, once)
