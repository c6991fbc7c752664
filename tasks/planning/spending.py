"""The rows and the time that a plan spends: its methods' needs, and the steps that a budget allows.

Steps follow from a budget where neither the user nor a preset says how many there are; those of a preset are
the most that are taken, for they are what its name stands for. Nearly all rows are for training: its windows
are judged before anything has trained on them, so no row is kept for validation, and the test is as large as
goes with the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from blackbox.words import counted
from tasks.errors import ConfigurationError
from tasks.folder.run import stage_name
from tasks.planning import trial
from tasks.planning.plan import POPULATION, Plan, PlannedRows
from tasks.planning.trial import TRIES, Asked, Rehearsal, Sizes, Trial
from tasks.problem.data import Data
from tasks.problem.problem import Problem
from tasks.rows.binding import Bound
from tasks.rows.budget_parts import judges_by_windows, rows_of_test, seconds_left, shorten_test
from tasks.rows.kept_answers import FIRST, KeptAnswers
from tasks.workers import group
from zo.batches import count_rows
from zo.tangents.population import FACTORS

# decision 187:
KEPT = 0.02  # of the rows, for what a kill makes the run ask again, of quick boxes
LEAST = 5  # steps that make sense
WINDOWS, VALIDATIONS = 12, 3  # validations of a training by its own windows; by rows of their own
EACH = 5  # windows of one at least: fewer cannot show that the last weights are worse, decision 220
# decisions 189, 190:
BATCH, FEW_STEPS = 8, 32  # rows in a step of a loss that calls a box once, where there are so many steps
BEGIN = POPULATION, "tangents"  # methods that begin with the rows that are timed; decision 247
# decision 188:
WORK = 0.1  # seconds that a step computes beside the boxes, where a few steps did not say it
PACE = 1000  # steps a second, at most
# decision 190:
PATIENCE = 300.0  # seconds that rows alone, without minutes, may take for several rates
# decision 188:
SHARE = 0.5  # of the steps that there are without a surrogate, which one must leave

Work = Mapping[str, Rehearsal | None]


def settled(
    plan: Plan,
    bound: Bound,
    asked: Asked,
    answers: Callable[[str], KeptAnswers] = KeptAnswers,
    *,
    timed: bool,
    keep: bool = False,
    rehearse: Callable[[Plan, Bound], Work] | None = None,
) -> Plan:
    """A plan with its rows and with settings that follow from its budget, when boxes can be asked.

    Args:
        plan: The user's plan.
        bound: Its problem in the run, which takes the settings over.
        asked: The problem's cost, see `trial.asked`.
        answers: Gives the kept answers of a stage's steps, by its name. The trial adds those of the first
            step, whose weights and batch it has. Without a folder, as here, nothing is kept.
        timed: Whether to run a batch's rows to see how long they take, where the budget has room for it.
        keep: Whether the plan's trial keeps the boxes' answers.
        rehearse: Estimates the methods' computing beside the boxes, by a trial with the boxes' answers.

    Raises:
        ConfigurationError: The run takes more rows than its budget has, or the budget that steps follow from
            has no room for a training: no row was run, but for the data.
    """
    problem, chooses, tries = bound.problem, plan.is_open, _tries(plan)
    if asked.raised and "batch" in plan.chosen and not asked.made:
        # a loss that one row does not give, as with batch norm
        before, data = problem.config.batch, problem.data
        if _takes(bound, 2):
            asked = trial.asked(bound, plan.methods, len(plan.seeds))
            if asked.sizes is None:
                _put_back(bound, before, data)
    sizes = asked.sizes
    if sizes is None:
        plan = replace(plan, instead=asked.instead)
        if chooses:
            plan = _as_set(plan)
            bound.settle(plan.chosen)
        return plan
    if chooses:
        if "batch" in plan.chosen and POPULATION in plan.methods:
            sizes = _with_a_batch(bound, sizes, asked.made)
        _Choice(plan, problem, sizes, asked.made).refuse_too_few()
    else:
        plan, sizes = _with_rows(plan, bound, sizes, asked.made)
    # the rows that are timed count too, and must not be those that the end of the run needs
    room = chooses or _has_room(plan, tries * sizes.objective)
    if timed and room and (plan.config.minutes is not None or not problem.has_no_box()):
        plan = replace(plan, trial=_trial(plan, problem, sizes, answers, keep=keep or chooses))
    if rehearse is not None:
        plan = replace(plan, work=rehearse(plan, bound))
    if chooses:
        plan = _with_choice(plan, _Choice(plan, problem, sizes, asked.made, bound.elapsed))
        bound.settle(plan.chosen)
        plan, _ = _with_rows(plan, bound, sizes, asked.made)
        config = plan.config
        plan = replace(
            plan,
            work={
                name: _at(work, name, len(config.rates), surrogate=config.surrogate)
                for name, work in plan.work.items()
            },
        )
    return plan


def _trial(
    plan: Plan, problem: Problem, sizes: Sizes, answers: Callable[[str], KeptAnswers], *, keep: bool
) -> Trial:
    """Time the first batch, whose answers the first step of a training takes over, if it is in one process.

    A training through tangents begins with the rows that are timed: its first weights, at its first batch.
    """
    seed = plan.seeds[0]
    take = partial(trial.timed, problem, seed=seed, keep=keep, tries=_tries(plan))
    begins = next((name for name in BEGIN if name in plan.methods), None)
    if begins is None or group.process_group() is not None:
        return take()
    stage = stage_name(seed, begins)
    kept = answers(stage)
    kept.end()  # of a process that was killed here: what is timed has to run
    kept.place = FIRST
    with kept.used():
        found = take()
    kept.write()
    return replace(found, handed=min(answers(stage).rows_known, sizes.objective))


def _tries(plan: Plan) -> int:
    """Return how many evaluations of the objective are timed: one where rows alone are to be spent."""
    return 1 if plan.is_open and plan.config.minutes is None else TRIES


def _with_a_batch(bound: Bound, sizes: Sizes, made: int) -> Sizes:
    """Sizes with batches of several rows where a row calls a box once: of one call a gradient shows little.

    Data are made again with them, unless that would cost rows.

    Args:
        bound: The problem in the run, with the least batches; it takes the batch over.
        sizes: How many rows are asked for at once.
        made: Rows that were run to make the data.
    """
    rows, batch = bound.problem.config.rows, sizes.batch
    if sizes.objective == batch and not made:
        batch = BATCH if rows is None else min(BATCH, rows // FEW_STEPS)
    if batch <= sizes.batch or not _takes(bound, batch):
        return sizes
    return replace(sizes, objective=batch, batch=batch)


def _takes(bound: Bound, batch: int) -> bool:
    """Take batches of so many rows over, and data that are made again with them; say whether these fit."""
    problem, before, data = bound.problem, bound.problem.config.batch, bound.problem.data
    del vars(problem)["data"]
    bound.settle({"batch": batch})
    try:
        with torch.random.fork_rng(devices=()):
            fits = count_rows(problem.training_batch(0, 0)) == batch
    except Exception:  # whatever so many rows do to data that have fewer
        fits = False
    if not fits:  # or they are split in their own way
        _put_back(bound, before, data)
    return fits


def _put_back(bound: Bound, batch: int, data: Data) -> None:
    """Take batches of so many rows over, and the data that were made with them."""
    bound.settle({"batch": batch})
    vars(bound.problem)["data"] = data


def _with_rows(plan: Plan, bound: Bound, sizes: Sizes, made: int) -> tuple[Plan, Sizes]:
    """A plan with its rows, and sizes with those of the test that the run takes.

    Raises:
        ConfigurationError: They are more than its budget has.
    """
    problem = bound.problem
    if (rows := rows_of_test(problem, plan.chosen)) is not None:
        sizes = _sized(sizes, problem, rows)
        shorten_test(problem, rows)
    plan = replace(plan, rows=_rows(problem, plan, sizes, made))
    if not _has_room(plan, 0):
        raise _beyond_the_budget(plan)
    return plan, sizes


def _sized(sizes: Sizes, problem: Problem, rows: int) -> Sizes:
    """Sizes with a test on so many rows of data."""
    return replace(sizes, test=-(-rows * sizes.test // count_rows(problem.data.test)))


def _has_room(plan: Plan, more: int) -> bool:
    """Say whether the budget has so many rows more than the plan takes."""
    return plan.config.rows is None or plan.total + more <= plan.config.rows


def _beyond_the_budget(plan: Plan) -> ConfigurationError:
    assert plan.rows is not None
    rows = plan.rows
    steps = ", ".join(f"{name} {count:,}" for name, count in rows.steps.items() if count)
    why = "".join(f" {sentence.strip()}" for sentence in plan.aside)
    free = POPULATION not in plan.methods and not plan.problem.has_no_box()
    other = f" Or have these rows spent as well as they can be: --methods none {POPULATION}." if free else ""
    return ConfigurationError(
        f"rows: expected a run within its budget of {counted(plan.config.rows, 'row')}, got a plan of at "
        f"least {plan.total:,} in {counted(len(plan.seeds), 'seed')} of: {steps}; validation and test "
        f"{rows.judging:,}. {_were_run(rows.made)}.{why} Raise --rows, or lower --steps, --batch, or the "
        f"methods' settings.{other}"
    )


def _were_run(made: int) -> str:
    """Say in a refusal how many rows are spent."""
    if not made:
        return "No row was run"
    return f"{counted(made, 'row')} {'was' if made == 1 else 'were'} run, to make the data"


def _as_set(plan: Plan) -> Plan:
    """A plan whose steps stay as they are set, for its rows are not known beforehand."""
    sentence = (
        "  Steps stay as they are set, and --rows and --minutes are the limit alone: what methods, "
        f"validation and test of {plan.problem.name()} take is not known beforehand.",
    )
    as_set = {name: getattr(plan.config, name) for name in plan.chosen}
    return plan.choosing({} if plan.problem.presets else as_set, sentence)


def _with_choice(plan: Plan, choice: _Choice) -> Plan:
    """A plan with as many steps as its budget allows, with room for all checks of queries.

    Steps stay as they are set where the rows of a problem are not known beforehand, or steps take none. A
    validation or test of the problem's own is supposed to take each row of its data once, as the objective
    does.

    Args:
        plan: A plan with a budget; it leaves `steps` and perhaps other settings to be chosen.
        choice: The choice that fits into the budget.
    """
    preset = bool(plan.problem.presets)
    if not choice.known:
        return _as_set(plan)
    choice = choice.richest()
    least = choice.in_all(choice.as_set.least)
    if preset and (plan.config.rows is None or least <= plan.config.rows) and choice.ends(plan.config.steps):
        return plan.choosing({})
    steps = group.of_all(choice.most_steps())[0]  # each has a clock of its own
    if steps is None or (steps == 0 and preset):  # which is refused for what it takes at least
        return plan.choosing({} if preset else choice.settings(plan.config.steps))
    sentence = f"  The preset's {counted(plan.config.steps, 'step')} would take {least:,} rows at least."
    return plan.choosing(choice.settings(max(1, steps)), (sentence,) if preset else ())


@dataclass(frozen=True)
class _Choice:
    """The choice of how many steps a budget of rows and minutes allows, and at how many learning rates.

    Attributes:
        plan: A plan with a budget; it leaves `steps` and perhaps other settings to be chosen.
        problem: The plan's problem, in the run, with its box and data.
        sizes: How many rows are asked for at once.
        made: Rows that were run to make the data.
        spent: Seconds that the run has taken by now.
        surrogate: Whether a population has one, where that is to be chosen.
        several: Whether there may be several rates, where that is to be chosen.
    """

    plan: Plan
    problem: Problem
    sizes: Sizes
    made: int
    spent: float = 0.0
    surrogate: bool = True
    several: bool = True

    def rows(self, settings: Mapping[str, object]) -> PlannedRows:
        """Return the rows of a seed, with some settings in the place of the plan's."""
        problem = self.problem.with_settings(**settings)
        tested = rows_of_test(problem, self.plan.chosen)
        sizes = self.sizes if tested is None else _sized(self.sizes, problem, tested)
        return _rows(problem, self.plan, sizes, self.made, supposing=True)

    @cached_property
    def as_set(self) -> PlannedRows:
        """The rows of a seed with the settings of the plan."""
        return self.rows({})

    @property
    def known(self) -> bool:
        """True if the rows of methods, validation and test are known."""
        rows = self.as_set
        return rows.validation is not None and rows.test is not None and None not in rows.costs.values()

    def settings(self, steps: int) -> dict[str, object]:
        """Return the settings that go with so many steps."""
        by_windows = judges_by_windows(self.problem, self.plan.chosen)
        every = max(EACH, -(-steps // WINDOWS)) if by_windows else -(-steps // (VALIDATIONS - 1))
        batch = self.problem.config.batch
        settings = {"steps": steps, "validate_every": every, "rates": self._rates, "batch": batch}
        settings["surrogate"] = self.surrogate
        return {name: settings[name] for name in self.plan.chosen}

    @cached_property
    def _rates(self) -> list[float]:
        """Several, where what they add to a step takes no longer than its rows, or is short; else one.

        Decisions 188 and 190; those that are set by hand stay.
        """
        if "rates" not in self.plan.chosen:
            return list(self.plan.config.rates)
        if not self.several:
            return [1.0]
        box = self.plan.trial.evaluation or 0.0
        if self.plan.config.minutes is None:
            box = max(box, PATIENCE * self.sizes.objective / max(1, self._budget))
        work, several = self.plan.work.get(POPULATION), False
        if work is not None and work.replays:
            one, all_of_them = (
                replace(work, networks=networks).further(work.replays) for networks in (1, len(FACTORS))
            )
            several = all_of_them - one <= box
        (several, *_) = group.of_all(several)
        return list(FACTORS) if several else [1.0]

    def fits(self, steps: int) -> bool:
        """Say whether all seeds end within the budget of rows, and of minutes."""
        rows = self.rows(self.settings(steps))
        return (self.plan.config.rows is None or self._has_room(rows)) and self.ends(steps)

    def _has_room(self, rows: PlannedRows) -> bool:
        """Say whether the budget has the rows of all seeds, with their checks."""
        return len(self.plan.seeds) * rows.with_checks <= self._budget

    def ends(self, steps: int) -> bool:
        """Say whether all seeds end in time, judged by the first batch."""
        minutes = self.plan.config.minutes
        return minutes is None or self._seconds(steps) <= seconds_left(minutes, self.spent)

    def _seconds(self, steps: int) -> float:
        seconds = 0.0
        rows = self.rows(self.settings(steps))
        for name, cost in rows.costs.items():
            if cost is not None:
                seconds += cost.evaluations * (self.plan.trial.evaluation or 0.0)
                if cost.learns:
                    work = _at(self.plan.work.get(name), name, len(self._rates), surrogate=self.surrogate)
                    seconds += steps * WORK if work is None else work.seconds(steps)
        tests = self.plan.trial.seconds(len(rows.costs) * rows.once["test"], self.sizes)
        return len(self.plan.seeds) * (seconds + tests)

    def richest(self) -> _Choice:
        """Return the choice that has as much beside its steps as leaves a sensible number of these.

        A surrogate stays where it leaves half of the steps that there are without it, several rates where
        they leave five. Decision 188.
        """
        minutes, chosen = self.plan.config.minutes, self.plan.chosen
        if minutes is None or POPULATION not in self.plan.methods:
            return self
        choice, work = self, self.plan.work.get(POPULATION)
        if "surrogate" in chosen:
            without = replace(self, surrogate=False)
            steps, plain = self._shared_steps(), without._shared_steps()
            (computes, *_) = group.of_all(work is not None and work.update > 0)
            if computes and (steps < LEAST or steps < SHARE * plain):
                choice = without
        if "rates" in chosen and choice._shared_steps() < LEAST:
            choice = replace(choice, several=False)
        return choice

    def _shared_steps(self) -> float:
        """Return the most steps there is room for by the first process's clock; infinite for no end."""
        (steps, *_) = group.of_all(self.most_steps())
        return math.inf if steps is None else steps

    def most_steps(self) -> int | None:
        """Return the most steps there is room for, at most a preset's; 0 for none, None for no end."""
        config = self.plan.config
        if not any(self.as_set.steps.values()):
            return None
        most = int(PACE * 60 * config.minutes) if config.rows is None else self._budget + 1
        if self.plan.problem.presets:
            most = config.steps
        elif config.rows is not None and self.fits(most):  # a step that asks for rows asks for one at least
            return None
        low, high = 0, 1
        while high <= most and self.fits(high):
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle) else (low, middle)
        return low

    def in_all(self, rows: int) -> int:
        """Return the rows of a run whose seeds take so many each, with all others."""
        return len(self.plan.seeds) * rows + self._aside

    def refuse_too_few(self) -> None:
        """Refuse rows that are too few for a training, with a number that would do.

        Raises:
            ConfigurationError: There are too few; none was run, but for the data.
        """
        plan, budget = self.plan, self.plan.config.rows
        if budget is None or plan.problem.presets or not self.known or not any(self.as_set.steps.values()):
            return
        rows = self.rows(self.settings(LEAST))
        if self._has_room(rows):
            return
        enough = -int(-self.in_all(rows.with_checks) // (1 - KEPT))
        takes = ", ".join(f"{name} {count:,}" for name, count in rows.checked.items() if count)
        raise ConfigurationError(
            f"rows: expected a run within its budget of {counted(budget, 'row')}, got one of at least "
            f"{enough:,}: {counted(LEAST, 'step')} of each method, with their checks, take {takes}; "
            f"validation and test {rows.judging:,}{', in each seed' if len(plan.seeds) > 1 else ''}; "
            f"the rest is timed. {_were_run(self.made)}. Give --rows {enough} or more."
        )

    @property
    def _aside(self) -> int:
        """Rows of the budget that no seed gets: of making the data, and of timing a batch."""
        trial = self.plan.trial
        return self.made + (trial.aside if trial.spent.rows_run else _tries(self.plan) * self.sizes.objective)

    @property
    def _budget(self) -> int:
        """Rows for all seeds."""
        return int((1 - KEPT) * self.plan.config.rows) - self._aside


def _at(work: Rehearsal | None, name: str, rates: int, *, surrogate: bool) -> Rehearsal | None:
    """Return a method's rehearsal, at so many rates and perhaps without a surrogate if it has such."""
    if work is None or name != POPULATION:
        return work
    work = replace(work, networks=max(1, rates))
    return work if surrogate else replace(work, update=0.0, update_of_many=0.0)


def _rows(problem: Problem, plan: Plan, sizes: Sizes, made: int, *, supposing: bool = False) -> PlannedRows:
    """Return the rows that the settings of a problem ask for.

    Args:
        problem: The problem with its settings.
        plan: The plan, with its methods and chosen settings.
        sizes: How many rows are asked for at once.
        made: Rows that were run to make the data.
        supposing: Whether a problem's own validation or test is supposed to take each row of its data once,
            as the objective does.
    """
    config, kind, methods = problem.config, type(problem), plan.methods
    costs = {
        name: None if method.cost is None else method.cost(problem, config.steps)
        for name, method in methods.items()
    }
    sure_costs = {name: cost for name, cost in costs.items() if cost is not None}
    steps = {name: round(sizes.objective * cost.evaluations) for name, cost in sure_costs.items()}
    most = {
        name: round(sizes.objective * (cost.most or cost.evaluations)) for name, cost in sure_costs.items()
    }
    validates = kind.validate is Problem.validate or (supposing and sizes.validation)
    tests = (kind.evaluate is Problem.evaluate and kind.judge is Problem.judge) or (supposing and sizes.test)
    free = judges_by_windows(problem, plan.chosen)
    validations = 0 if free else 1 + -(-config.steps // config.validate_every)
    once = {"validation": validations * sizes.validation, "test": sizes.test}
    validation = once["validation"] if validates else None
    test = once["test"] if tests else None
    validated = sum(cost is None or cost.evaluations > 0 for cost in costs.values())
    judging = validated * (validation or 0) + len(methods) * (test or 0)
    return PlannedRows(sizes, costs, steps, most, validation, test, judging, made, once)
