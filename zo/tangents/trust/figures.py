"""The figures of a check that cost trust: of each its limits, its sentence and its metric, in `FIGURES`.

To add one: measure it in `Query.figures` (`evidence/along_gradient.py`), and write a line of the table here,
with a limit in `Thresholds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from zo.tangents.trust.evidence import Check
from zo.tangents.trust.trust_terms import State, TrustTerms

Range = tuple[float, float]


@dataclass(frozen=True)
class Fault:
    """A limit that is broken.

    Attributes:
        name: the name of a figure, or "error" for the predictions.
        found: the value.
        limit: the least or the most that it may be.
        expectation: the expectation and the finding, in words.
    """

    name: str
    found: float
    limit: float
    expectation: str


@dataclass(frozen=True)
class Figure:
    """A figure of a check with its limits.

    Attributes:
        name: its name in `Check.figures`; the metric has "tangent_" before that name.
        limits: the least and the most that it may be; None where it does not count.
        words: a function of the value found and the broken limit: the expectation, in words.
    """

    name: str
    limits: Callable[[TrustTerms, State, Check], Range | None]
    words: Callable[[float, float], str]

    def fault(self, terms: TrustTerms, state: State, check: Check) -> Fault | None:
        """The limit that a check breaks; None where it breaks none, or has not measured the figure."""
        value, limits = check.figures.get(self.name), self.limits(terms, state, check)
        if value is None or limits is None or limits[0] <= value <= limits[1]:
            return None
        limit = limits[0] if value < limits[0] else limits[1]
        return Fault(self.name, value, limit, self.words(value, limit))


def _agreement(terms: TrustTerms, state: State, check: Check) -> Range | None:
    """The least agreement; also the most where a model of values predicts too little and no cosine shows it.

    None once part of the gradient is known to be cut off: then the loss changes by what no tangent predicts.
    """
    one_sided = "agreement_of_rows" in check.figures
    least = terms.limits.thresholds.agreement
    cut = state.cut or check.cut is not None
    return None if cut else (least, math.inf if one_sided else 2 - least)


def _agreement_words(found: float, limit: float) -> str:
    short = found < limit
    return (
        f"the loss along the gradient to change by at {'least' if short else 'most'} {limit:g} times what "
        f"the gradient says, found {found:.3g} times"
        + ", as also where the objective detaches what weights move"
        * short
    )


def _of_rows(terms: TrustTerms, state: State, check: Check) -> Range | None:
    """The least cosine: it shows a model of values whose errors cancel between rows."""
    return terms.limits.thresholds.agreement_of_rows, math.inf


def _of_rows_words(found: float, limit: float) -> str:
    return (
        "the rows' own losses to change along the gradient as the tangents say of each, with a cosine of at "
        f"least {limit:g}, found {found:.3g}"
    )


def _missed(terms: TrustTerms, state: State, check: Check) -> Range | None:
    """The largest error, with few rows: a flat loss hides that responses are wrong."""
    return None if "agreement_of_rows" in check.figures else (-math.inf, terms.limits.thresholds.missed)


def _missed_words(found: float, limit: float) -> str:
    return (
        "tangents to predict the boxes' responses along the gradient with a relative error of at most "
        f"{limit:g}, found {found:.3g}"
    )


FIGURES = (  # in the order of the warning
    Figure("agreement", _agreement, _agreement_words),
    Figure("agreement_of_rows", _of_rows, _of_rows_words),
    Figure("missed", _missed, _missed_words),
)


def faults_of(terms: TrustTerms, state: State, check: Check | None) -> tuple[Fault, ...]:
    """The limits that a check breaks."""
    if check is None:
        return ()
    return tuple(filter(None, (figure.fault(terms, state, check) for figure in FIGURES)))


def fault_of_error(error: float, limit: float) -> Fault:
    """The limit that the mean error of predictions breaks."""
    words = (
        f"tangents to predict the boxes' values with a relative error of at most {limit:g}, found "
        f"{_above(error, limit)} over the last steps"
    )
    return Fault("error", error, limit, words)


def metrics(check: Check) -> dict[str, float | None]:
    """The figures of a check, by the names of their metrics."""
    return {f"tangent_{figure.name}": check.figures.get(figure.name) for figure in FIGURES}


def _above(value: float, limit: float) -> str:
    """A value above a limit, in as many digits as show that it is: 1.0004 is no 1."""
    for digits in range(3, 17):
        if float(f"{value:.{digits}g}") > limit:
            return f"{value:.{digits}g}"
    return f"{value!r}"
