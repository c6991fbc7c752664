"""Which rule would have told a gradient that misleads: hits, misses and false alarms over all runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from benchmarks.tangents.checks import SAME

WRONG = 0.8  # of the cosine to the true gradient: below it a gradient misleads
WORSE = 1.1  # of the error over first order's: above it a training was misled

Check = Mapping[str, float | None]
Rule = Callable[[Check], bool | None]  # whether it finds fault; None where it cannot tell


@dataclass
class Count:
    """What became of a rule's verdicts.

    Attributes:
        hits: faults that it found.
        misses: faults that it did not.
        false_alarms: gradients or trainings that were right, in which it found fault.
        passes: those in which it found none.
    """

    hits: int = 0
    misses: int = 0
    false_alarms: int = 0
    passes: int = 0

    def take(self, wrong: bool, alarm: bool) -> None:
        """Count one."""
        name = ("hits" if alarm else "misses") if wrong else ("false_alarms" if alarm else "passes")
        setattr(self, name, getattr(self, name) + 1)

    def __str__(self) -> str:
        """As the table has it."""
        wrong, right = self.hits + self.misses, self.false_alarms + self.passes
        return f"{self.hits} of {wrong}, {self.false_alarms} of {right}" if wrong or right else ""


def _between(name: str, low: float, high: float) -> Rule:
    """A rule that finds fault outside of bounds."""

    def rule(check: Check) -> bool | None:
        value = check.get(name)
        return None if value is None else not low <= value <= high

    return rule


def either(first: Rule, second: Rule) -> Rule:
    """A rule that finds fault where one of two does; it cannot tell where one cannot."""

    def rule(check: Check) -> bool | None:
        told = first(check), second(check)
        return None if None in told else any(told)

    return rule


def both(first: Rule, second: Rule) -> Rule:
    """A rule that finds fault where both of two do; it cannot tell where one cannot."""

    def rule(check: Check) -> bool | None:
        told = first(check), second(check)
        return None if None in told else all(told)

    return rule


SINGLE: dict[str, Rule] = {
    "agreement outside .7 to 1.3": _between("agreement", 0.7, 1.3),
    "agreement below .5": _between("agreement", 0.5, math.inf),
    "agreement below 0": _between("agreement", 0.0, math.inf),
    "responses along the gradient off by > .2": _between("along", 0.0, 0.2),
    "responses along the gradient off by > .5": _between("along", 0.0, 0.5),
    "a probe's response off by > .2": _between("probe", 0.0, 0.2),
    "a probe's response off by > .5": _between("probe", 0.0, 0.5),
    "values off by > .1 of the box's step": _between("values", 0.0, 0.1),
    "values off by > .3 of the box's step": _between("values", 0.0, 0.3),
    "values off by > .1 of their spread": _between("values, spread", 0.0, 0.1),
}
PAIRED = (
    "agreement outside .7 to 1.3",
    "responses along the gradient off by > .2",
    "a probe's response off by > .2",
    "values off by > .1 of the box's step",
)


def rules() -> dict[str, Rule]:
    """All that are tried: single ones, and pairs of some, either and both."""
    found = dict(SINGLE)
    for one, other in combinations(PAIRED, 2):
        found[f"{one}, or {other}"] = either(SINGLE[one], SINGLE[other])
        found[f"{one}, and {other}"] = both(SINGLE[one], SINGLE[other])
    return found


def counted(
    measured: Mapping[str, Any], rule: Rule, noisy: bool, same_noise: bool = False
) -> tuple[Count, Count]:
    """A rule's verdicts at all checks of all runs with a tangent, by the cosine and by the training's end.

    A training is called wrong where the rule finds fault in at least half of its checks.

    Args:
        measured: problem -> what its JSON file holds.
        rule: that is judged.
        noisy: whether boxes with noise are looked at, or those without.
        same_noise: whether the checks were made with the same noise on both sides.

    Returns:
        By the cosine of each check, and by the error over first order's of each training.
    """
    gradients, trainings = Count(), Count()
    for curves, seed, curve in _runs(measured):
        checks = [each for each in curve["checks"] if (f"agreement{SAME}" in each) == noisy]
        if same_noise:
            alike = ("agreement", "along", "probe")
            checks = [{**each, **{name: each.get(name + SAME) for name in alike}} for each in checks]
        told = [(each, verdict) for each in checks if (verdict := rule(each)) is not None]
        for check, alarm in told:
            if check["cosine"] is not None and math.isfinite(check["cosine"]):
                gradients.take(check["cosine"] < WRONG, alarm)
        first = curves.get("first-order", {}).get(seed)
        if told and first is not None:
            end, best = curve["errors"][-1], first["errors"][-1]
            worse = end is None or bool(curve["ended"]) or end > WORSE * best
            trainings.take(worse, 2 * sum(alarm for _, alarm in told) >= len(told))
    return gradients, trainings


def table(measured: Mapping[str, Any]) -> str:
    """Markdown: each rule's hits and false alarms."""
    lines = [
        "Checks at eight points of each training with a tangent. A gradient is wrong where its cosine to "
        f"the true one is below {WRONG:g}, a training where its error is more than {WORSE:g} times first "
        "order's; a training is called wrong where half of its checks find fault. First the wrong ones "
        "that are found, then false alarms among those that are right; with noise: two sides drawn apart, "
        "and drawn alike.",
        "",
        "| fault is found where | gradients, no noise | trainings, no noise | gradients, noise "
        "| trainings, noise | gradients, same noise | trainings, same noise |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rule in rules().items():
        cells = [
            counted(measured, rule, noisy, same)
            for noisy, same in ((False, False), (True, False), (True, True))
        ]
        lines.append(f"| {name} | {' | '.join(str(count) for pair in cells for count in pair)} |")
    return "\n".join(lines) + "\n"


def _runs(measured: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """The problem's curves, the seed and the curve of each training with a tangent."""
    for found in measured.values():
        for seeds in found["curves"].values():
            for seed, curve in seeds.items():
                if curve["checks"]:
                    yield found["curves"], seed, curve
