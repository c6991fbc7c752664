"""Finite differences that choose their steps beside fixed ones: as gradients, and to check gradients.

    python -m benchmarks finite_difference --size ci       two points; written nowhere
    python -m benchmarks finite_difference --size small    the table

Ten functions of six numbers, in NumPy, have exact derivatives by autograd in float64 of the same formula. At
each of twenty random points there are four gradients: `zo.finite_difference` without a setting; central
differences over 1e-4; over 1e-4 of the size of each number, as with inputs that are normalised; and over
that step of a sweep, 1e-1 to 1e-9 and the same for all points, at which the median error is least. The last
one knows the answer, which nobody does who needs it. Where a difference fails, as beyond the edge of a
domain, its derivative is counted as off by all of its size.

The error is that of the whole gradient, relative to the exact one's length. As a check a derivative is held
against the difference of each number, with a tolerance of 0.5 % of it; `zo.finite_difference` adds its own
error. A false alarm is a derivative that is right and flagged, a miss one that is wrong by 1 % and is not.

Served to an optimiser: from each point L-BFGS, which has each number in units of its size, lowers the
function beside a parabola around the point, at most thirty iterations, by each kind of gradient. What counts
is the share of the decrease by the exact gradient that is reached, of the function without noise or rounding.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import zo
from benchmarks import protocol

NUMBERS, POINTS, FIXED, TOLERANCE, WRONG = 6, 20, 1e-4, 0.005, 0.01
SWEEP = tuple(10.0**-power for power in range(1, 10))
SIZES = np.array([1e-6, 1e-3, 1e-1, 1e1, 1e3, 1e6])  # of badly scaled inputs
NARROW, CENTRE = 1e-4, 0.7  # of a stiff function
ITERATIONS = 30  # of L-BFGS

Vector = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Function:
    """One function: the formula, what becomes of its value, and where it is differentiated.

    Attributes:
        formula: `(numbers,)` float64 to a number, in torch.
        points: draws a point.
        given: the number as the program gives it, such as rounded; takes draws of noise.
        failing: whether the function has no value at a point.
        single: whether it is computed in float32.
    """

    formula: Callable[[Tensor], Tensor]
    points: Callable[[np.random.Generator], Vector]
    given: Callable[[float, np.random.Generator], float] = lambda value, random: value
    failing: Callable[[Vector], bool] = lambda x: False
    single: bool = False

    def exact(self, x: Vector) -> Vector:
        """The derivative at a point, `(numbers,)`."""
        leaf = torch.tensor(x, requires_grad=True)
        return torch.autograd.grad(self.formula(leaf), leaf)[0].numpy()

    def called(self, random: np.random.Generator) -> Callable[[Vector], float]:
        """The function as a program has it: of an array, with a number."""

        def f(x: Vector) -> float:
            if self.failing(x):
                raise ValueError("outside")
            tensor = torch.from_numpy(x)
            return self.given(float(self.formula(tensor.float() if self.single else tensor)), random)

        return f


def _usual(random: np.random.Generator) -> Vector:
    return random.uniform(0.5, 2.0, NUMBERS) * random.choice([-1.0, 1.0], NUMBERS)


def _near_edges(random: np.random.Generator) -> Vector:
    return 10 ** random.uniform(-6, -1, NUMBERS)


def _smooth(x: Tensor) -> Tensor:
    return (torch.sin(x) * torch.roll(x, 1)).sum()


FUNCTIONS: dict[str, Function] = {
    "smooth": Function(_smooth, _usual),
    "stiff: a front of width 1e-4": Function(
        lambda x: torch.tanh((x - CENTRE) / NARROW).sum() + x.sum(),
        lambda random: CENTRE + NARROW * random.normal(size=NUMBERS),
    ),
    "oscillating: sin(300 x)": Function(lambda x: torch.sin(300 * x).sum(), _usual),
    "an offset of 1e8": Function(lambda x: 1e8 + _smooth(x), _usual),
    "computed in float32": Function(_smooth, _usual, single=True),
    "printed with 4 digits": Function(
        lambda x: 3 + _smooth(x), _usual, given=lambda value, random: float(f"{value:.3e}")
    ),
    "noise of 1e-5": Function(
        _smooth, _usual, given=lambda value, random: value + 1e-5 * float(random.normal())
    ),
    "kinks nearby: abs(sin(3 x))": Function(
        lambda x: torch.sin(3 * x).abs().sum(),
        lambda random: np.pi / 3 * random.integers(1, 3, NUMBERS) + _near_edges(random),
    ),
    "inputs of 1e-6 to 1e6": Function(
        lambda x: _smooth(x / torch.from_numpy(SIZES)), lambda random: SIZES * _usual(random)
    ),
    "the edge of a domain: log(x)": Function(
        lambda x: torch.log(x).sum(), _near_edges, failing=lambda x: bool((x <= 0).any())
    ),
}
METHODS = ("chosen", "fixed", "by size", "best of a sweep")


def central(f: Callable[[Vector], float], x: Vector, steps: Vector) -> Vector:
    """Central differences over given steps; NaN where one of the two fails."""
    slopes = np.full(len(x), np.nan)
    for place, step in enumerate(steps):
        values = []
        for sign in (1.0, -1.0):
            moved = x.copy()
            moved[place] += sign * step
            try:
                values.append((f(moved), moved[place]))
            except ValueError:
                break
        if len(values) == 2 and values[0][1] != values[1][1]:
            slopes[place] = (values[0][0] - values[1][0]) / (values[0][1] - values[1][1])
    return slopes


def error(gradient: Vector, exact: Vector) -> float:
    """Of a gradient, relative to the length of the exact one; unknown numbers are off by their size."""
    known = np.where(np.isfinite(gradient), gradient, 0.0)
    return float(np.linalg.norm(known - exact) / np.linalg.norm(exact))


def measured(function: Function, points: int) -> dict[str, Any]:
    """Errors, false alarms and misses of each way, and what the chosen steps take."""
    random = np.random.default_rng(0)
    f, places = function.called(random), [function.points(random) for _ in range(points)]
    exact = [function.exact(x) for x in places]
    chosen = [zo.finite_difference(f, x) for x in places]
    sweeps = {step: [central(f, x, np.full(NUMBERS, step)) for x in places] for step in SWEEP}
    errors = {
        step: statistics.median(error(*pair) for pair in zip(gradients, exact, strict=True))
        for step, gradients in sweeps.items()
    }
    best = min(errors, key=lambda step: errors[step])
    gradients = {
        "chosen": [result.gradient for result in chosen],
        "fixed": sweeps[FIXED],
        "by size": [central(f, x, FIXED * np.abs(x)) for x in places],
        "best of a sweep": sweeps[best],
    }
    allowances = [result.error for result in chosen]
    none = [np.zeros(NUMBERS)] * points
    results: dict[str, Any] = {
        name: judged(found, exact, allowances if name == "chosen" else none)
        for name, found in gradients.items()
    }
    results["best of a sweep"]["step"] = best
    off = np.abs(np.stack(gradients["chosen"]) - np.stack(exact))
    results["chosen"] |= {
        "evaluations": statistics.median(result.evaluations for result in chosen) / NUMBERS,
        "within its error": float((off <= np.stack(allowances)).mean()),
    }
    return results


def judged(found: list[Vector], exact: list[Vector], allowances: list[Vector]) -> dict[str, Any]:
    """Median and largest error, and shares of false alarms and misses."""
    errors = [error(*pair) for pair in zip(found, exact, strict=True)]
    slopes, truth, allowed = np.stack(found), np.stack(exact), np.stack(allowances)

    def flagged(claimed: Vector) -> Vector:
        return ~(np.abs(claimed - slopes) <= allowed + TOLERANCE * np.abs(slopes))

    wrong = [truth * (1 + sign * WRONG) for sign in (1, -1)]
    return {
        "median": statistics.median(errors),
        "largest": max(errors),
        "false alarms": float(flagged(truth).mean()),
        "misses": float(np.mean([~flagged(claimed) for claimed in wrong])),
    }


def served(function: Function, points: int, step: float) -> dict[str, float]:
    """Of each kind of gradient: the median share of the decrease by the exact one that L-BFGS reaches.

    Args:
        function: what is lowered, in sizes of the numbers at a point, beside a parabola around it.
        points: at which it begins.
        step: the best of a sweep.
    """
    random = np.random.default_rng(0)
    f, places = function.called(random), [function.points(random) for _ in range(points)]
    of: dict[str, Callable[[Vector], Vector]] = {
        "exact": function.exact,
        "chosen": lambda x: zo.finite_difference(f, x).gradient,
        "fixed": lambda x: central(f, x, np.full(NUMBERS, FIXED)),
        "by size": lambda x: central(f, x, FIXED * np.abs(x)),
        "best of a sweep": lambda x: central(f, x, np.full(NUMBERS, step)),
    }
    shares: dict[str, list[float]] = {name: [] for name in METHODS}
    for x in places:
        reached = {name: _lowered(function, f, gradient, x) for name, gradient in of.items()}
        for name in METHODS if reached["exact"] > 0 else ():
            shares[name].append(reached[name] / reached["exact"])
    return {name: statistics.median(several) for name, several in shares.items()}


def _lowered(
    function: Function, f: Callable[[Vector], float], gradient: Callable[[Vector], Vector], x: Vector
) -> float:
    """By how much L-BFGS lowers the function, as it is without noise, and the parabola."""
    size = np.abs(x)
    steep = float(np.linalg.norm(size * function.exact(x)))

    def value(u: Vector, given: bool = True) -> float:
        place = x + size * u
        if function.failing(place):
            return np.inf
        height = f(place) if given else float(function.formula(torch.from_numpy(place)))
        return height + steep * float(u @ u)

    def slope(u: Vector) -> Vector:
        place = x + size * u
        known = np.zeros(NUMBERS) if function.failing(place) else np.nan_to_num(gradient(place))
        return size * known + 2 * steep * u

    with np.errstate(all="ignore"):
        end = minimize(
            value, np.zeros(NUMBERS), jac=slope, method="L-BFGS-B", options={"maxiter": ITERATIONS}
        ).x
    lowered = value(np.zeros(NUMBERS), given=False) - value(end, given=False)
    return lowered if np.isfinite(lowered) else 0.0


def main(words: Sequence[str]) -> None:
    """The command line."""
    asked = protocol.options("finite_difference", __doc__).parse_args(words)
    torch.set_num_threads(1)
    points = 2 if asked.size == "ci" else POINTS
    results = {name: measured(function, points) for name, function in FUNCTIONS.items()}
    for name, found in results.items():
        shares = served(FUNCTIONS[name], points, found["best of a sweep"]["step"])
        for method, share in shares.items():
            found[method]["served"] = share
    print(table(results))
    if asked.size != "ci":
        content = {"points": points, "functions": results}
        protocol.write("finite_difference", words, content, protocol.path("finite_difference", asked.size))


def table(results: dict[str, dict[str, Any]]) -> str:
    """In Markdown: median error of each way; in brackets false alarms, misses and the decrease in percent."""
    lines = []
    for name, found in results.items():
        cells = []
        for method in METHODS:
            each = found[method]
            step = f" at {each['step']:.0e}" if "step" in each else ""
            shares = ", ".join(f"{100 * each[what]:.0f}" for what in ("false alarms", "misses", "served"))
            cells.append(f"{each['median']:.1e}{step} ({shares})")
        chosen = found["chosen"]
        cells += [f"{chosen['evaluations']:.0f}", f"{100 * chosen['within its error']:.0f} %"]
        lines.append((name, *cells))
    return protocol.markdown(("function", *METHODS, "calls a number", "within its error"), lines) + "\n"
