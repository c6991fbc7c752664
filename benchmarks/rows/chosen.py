"""Which problems the library's rules, constants and defaults were chosen on."""

from __future__ import annotations

from benchmarks.tangents.problems import HELD_OUT

RULES_CHOSEN_ON = {  # the problems on which the rules of replay and of several rates were chosen
    *("double-pendulum", "gray-scott"),  # decision 54
    *("bicycle", "coupled-map", "henon-heiles", "shallow-water", "torque-pendulum"),  # and 143
}
NOTHING, ELSEWHERE, CHOSEN = "held out", "replay's elsewhere", "chosen"


def chosen_on(problem: str) -> str:
    """What was chosen on a problem: nothing; models or the surrogate, no rule of replay; or rules of replay.

    Args:
        problem: its name.
    """
    if problem in HELD_OUT:
        return NOTHING
    return CHOSEN if problem in RULES_CHOSEN_ON else ELSEWHERE
