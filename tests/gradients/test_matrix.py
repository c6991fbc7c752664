"""Networks x evaluators x estimators against finite differences, on several steps, weights moved in between.

The quick part takes every network through the fastest evaluator for it, in chunks that move weights of one
layer; the slow part takes all evaluators, estimators and chunk sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

import zo
from tests.gradients.trials import names_a_part, trial
from tests.networks import ORDINARY, TREACHEROUS, Case

# (evaluator, whether the library is given an `OutputLoss`)
WAYS = {
    "loop": ("loop", False),
    "stacked": ("stacked", False),
    "auto": ("auto", False),
    "auto, output loss": ("auto", True),
    "difference": ("difference", True),
}
FAST = ("loop", "stacked", "auto, output loss")  # whatever else is named is, as things are, one of these
FORWARD = zo.CGE(1e-6)  # truncation 5e-7 of the curvature, rounding 1e-9 of the loss
SMALL, LAYER, WHOLE = 5, 24, 4096  # chunks: of a few weights; of most of a layer; of all there are
OTHERS = [  # estimators, and chunks for them
    (FORWARD, WHOLE),
    (zo.CGE(1e-5, central=True), SMALL),
    (zo.CGE(1e-5, central=True), WHOLE),
    (zo.CGE(1e-6, zo.RandomCoordinates(12)), SMALL),
    (zo.RGE(1e-7, q=5), WHOLE),
    (zo.RGE(1e-5, q=5, central=True), WHOLE),
    (zo.RGE(1e-4, q=6, distribution="sphere", central=True), 4),
]


def cases(zoo: list[Case], ways: Iterable[str] = WAYS) -> list[tuple[Case, str]]:
    """With an `OutputLoss` only networks whose objective is one."""
    return [(case, way) for case in zoo for way in ways if case.objective is None or not WAYS[way][1]]


def quick_once(zoo: list[Case], every: int) -> list[Any]:
    """The cases of `FAST`; of some networks, one in so many, that with the fastest evaluator is quick."""
    chosen = cases(zoo, FAST)
    last = dict(chosen)
    some = list(last.items())[::every]
    return [pytest.param(*case, marks=[pytest.mark.slow] * (case not in some)) for case in chosen]


def check(case: Case, way: str, estimator: zo.estimators.Estimator, chunk: int) -> None:
    """The gradient is right; or where nothing better is to be had, the library says what is wrong."""
    evaluator, output_loss = WAYS[way]
    outcome = trial(case, estimator, evaluator, chunk, output_loss=output_loss)
    unexpected = [w for w in outcome.warnings if not isinstance(w, zo.errors.EvaluatorWarning)]
    if outcome.error is not None:
        assert case.excuse, f"refused what can be served: {outcome.error}"
        assert names_a_part(outcome.error, case.make()), f"does not say what is wrong: {outcome.error}"
        assert not outcome.changed, f"left weights changed: {outcome.changed}"
    elif not outcome.right:
        assert case.excuse == "warning" and unexpected, f"{outcome}"
    elif not case.excuse:
        # Of noise there is nothing to say: draws are the same in all queries. And `loop` does not fall back.
        assert not unexpected and not (way == "loop" and outcome.warnings), (
            f"a false alarm: {outcome.warnings}"
        )


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("case", "way"), quick_once(ORDINARY, every=3), ids=str)
def test_ordinary_networks(case, way):
    check(case, way, FORWARD, SMALL)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("case", "way"), quick_once(TREACHEROUS, every=4), ids=str)
def test_treacherous_networks(case, way):
    check(case, way, FORWARD, LAYER)


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "chunk"), OTHERS, ids=lambda of: str(of).replace(" ", ""))
@pytest.mark.parametrize("way", WAYS)
def test_other_estimators_and_chunks(way, estimator, chunk):
    """Of each estimator and chunk all networks that fail are told."""
    failed = {}
    for case, served_by in cases([*ORDINARY, *TREACHEROUS]):
        if served_by == way:
            try:
                check(case, way, estimator, chunk)
            except AssertionError as error:
                failed[case.name] = str(error).splitlines()[0]
    assert not failed, "\n".join(f"{name}: {what}" for name, what in failed.items())
