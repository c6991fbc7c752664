"""Networks x evaluators x estimators against finite differences, on two steps, weights moved in between.

The fast part takes every network through every evaluator once, in chunks that move weights of one layer; the
slow part takes all estimators and chunk sizes.
"""

from __future__ import annotations

import pytest

import zo
from tests.gradients.networks import ORDINARY, TREACHEROUS, Case
from tests.gradients.trials import names_a_part, trial

# (evaluator, whether the library is given an `OutputLoss`)
WAYS = {
    "loop": ("loop", False),
    "stacked": ("stacked", False),
    "auto": ("auto", False),
    "auto, output loss": ("auto", True),
    "difference": ("difference", True),
}
FORWARD = zo.CGE(1e-6)  # truncation 5e-7 of the curvature, rounding 1e-9 of the loss
ESTIMATORS = {
    "cge": FORWARD,
    "central cge": zo.CGE(1e-5, central=True),
    "sparse cge": zo.CGE(1e-6, zo.RandomCoordinates(12)),
    "rge": zo.RGE(1e-7, q=5),
    "central rge": zo.RGE(1e-5, q=5, central=True),
    "central rge, sphere": zo.RGE(1e-4, q=4, distribution="sphere", central=True),
}
SMALL, LAYER, WHOLE = 5, 24, 4096  # chunks: of a few weights; of most of a layer; of all there are


def cases(zoo: list[Case]) -> list[tuple[Case, str]]:
    """With an `OutputLoss` only networks whose objective is one."""
    return [(case, way) for case in zoo for way in WAYS if case.objective is None or not WAYS[way][1]]


def check(case: Case, way: str, estimator: zo.Estimator, chunk: int) -> None:
    """The gradient is right; or where nothing better is to be had, the library says what is wrong."""
    evaluator, output_loss = WAYS[way]
    outcome = trial(case, estimator, evaluator, chunk, output_loss=output_loss)
    if outcome.error is not None:
        assert case.excuse, f"refused what can be served: {outcome.error}"
        assert names_a_part(outcome.error, case.make()), f"does not say what is wrong: {outcome.error}"
        assert not outcome.changed, f"left weights changed: {outcome.changed}"
    elif case.excuse == "warning" and not outcome.right:
        told = [w for w in outcome.warnings if not isinstance(w, zo.EvaluatorWarning)]
        assert told, f"said nothing: {outcome}"
    else:
        assert outcome.right, f"{outcome}"


@pytest.mark.parametrize(("case", "way"), cases(ORDINARY), ids=str)
def test_ordinary_networks(case, way):
    check(case, way, FORWARD, SMALL)


@pytest.mark.parametrize(("case", "way"), cases(TREACHEROUS), ids=str)
def test_treacherous_networks(case, way):
    check(case, way, FORWARD, LAYER)


@pytest.mark.parametrize("case", [case for case in [*ORDINARY, *TREACHEROUS] if not case.excuse], ids=str)
def test_loop_has_nothing_to_say(case):
    """Neither a fall-back nor noise: draws are the same in all queries."""
    assert trial(case, FORWARD, "loop", SMALL, output_loss=False).warnings == []


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [SMALL, LAYER, WHOLE])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize(("case", "way"), cases([*ORDINARY, *TREACHEROUS]), ids=str)
def test_with_every_estimator(case, way, estimator, chunk):
    check(case, way, estimator, chunk)
