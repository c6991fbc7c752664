"""Training in a run's report: validation and loss, and the trust of tangents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tasks.report import pictures, plots
from tasks.report.findings import Curve, Findings
from tasks.report.html_report import Block, Figure, Heading, Paragraph
from tasks.report.lead import START, in_role
from tasks.report.method_scores import scores
from tasks.report.run_tables import labelled
from zo.errors import TangentWarning

_OF_WINDOWS = (
    " It took no row: each is the mean loss of the training batches since the one before, at the weights "
    "before that step, which have trained on none of these rows if no row comes twice. The test is on the "
    "first rows of the test data, as many as go with the budget."
)


def blocks(facts: Findings) -> list[Block]:
    """Validation over rows and time, the loss of methods without it or under way, and how tangents did."""
    several = len(facts.seeds) > 1
    seeds = " Faint: each seed; bold: their mean." if several else ""
    units = facts.result.table[0].units
    parts: list[Block] = []
    validated = {
        method: curves
        for method, curves in facts.curves("validation").items()
        if any((curve.values == curve.values).any() for curve in curves.values())
    }
    firsts = [curve.steps[0] for curves in validated.values() for curve in curves.values()]
    by_windows = "validate_every" in facts.run.chosen and 0 not in firsts
    if validated:
        start = _start(facts, validated)
        parts.append(
            _drawn(
                facts,
                plots.training(
                    validated,
                    # without a unit of its own it is a loss, in what the objective is in
                    y=labelled("validation" if "validation" in units else "validation loss", units),
                    levels=start,
                ),
                "curves",
                alt="Validation against rows and against time, by method",
                caption="Validation during training, the lower the better, against the rows and the time of "
                "optimiser steps."
                + (" Dashed: the start, which all methods share." if start else "")
                + (_OF_WINDOWS if by_windows else "")
                + seeds,
            )
        )
    missed = [method for method in facts.curves("validation") if method not in validated]
    under_way = {score.method for score in scores(facts.result) if score.under_way}  # few validations, if any
    losses = {
        method: {seed: curve.smooth() for seed, curve in curves.items()}
        for method, curves in facts.curves("loss").items()
        if method not in validated or method in under_way
    }
    none = f"{'these methods have' if validated else 'there is'} no validation" + (
        f", or none of its rows came back: {', '.join(missed)}" if missed else ""
    )
    if losses:
        parts.append(
            _drawn(
                facts,
                plots.training(losses, y=labelled("training loss", units)),
                "loss",
                alt="Training loss against rows and against time, by method",
                caption="The loss on training batches, a running mean"
                + (f"; {none}" if losses.keys() - under_way else "")
                + f".{seeds}",
            )
        )
    parts = [*map(Paragraph, facts.gaps()), *parts, *_trust(facts)]
    return [Heading("Training"), *parts] if parts else []


def _trust(facts: Findings) -> list[Block]:
    """Show how far learned tangents could be believed, for methods that have some."""
    errors = {  # of batches of one row nothing but the first step may have one
        method: seeds
        for method, seeds in facts.curves("gradient_tangent_error").items()
        if any(len(curve.steps) > 1 for curve in seeds.values())
    }
    distrusted, checked = (facts.curves(f"gradient_tangent_{name}") for name in ("distrusted", "agreement"))
    if not errors and not checked:
        return []
    trust_lost = any((curve.values > 0).any() for curves in distrusted.values() for curve in curves.values())
    warned = any(warning.kind == TangentWarning.__name__ for warning in facts.result.warnings)
    why = "; the warnings say why" if warned else ""
    predictions = (
        f" {'Left: the' if checked else 'The'} relative error with which they predict the box's outputs "
        "before they learn from them; 0 is exact, at 1 (dashed) and above they say nothing."
        if errors
        else ""
    )
    checks = (
        f" {'Right: in' if errors else 'In'} each check, how much the loss changed along their gradient, "
        "over what the gradient says; 1 (dashed) is right, at 0 and below it would not descend; what is "
        "beyond -1 or 3 is drawn there."
        if checked
        else " No check along their gradient gave a number, as where a box is noisy or constant in pieces."
    )
    picture = _drawn(
        facts,
        plots.trust(errors, checked, distrusted),
        "trust",
        alt="Errors of the learned tangents' predictions, and checks of their gradients, by method",
        caption=f"How far the learned tangents can be believed.{predictions}{checks}"
        f"{f' Below: steps without trust in them{why}.' if trust_lost else ''}",
    )
    return [picture]


def _start(facts: Findings, validated: Mapping[str, Mapping[int, Curve]]) -> dict[str, float]:
    """The validation of the untrained start, as methods tell it before their first step, if they agree."""
    start = in_role(START, scores(facts.result))
    if start is None or start.method in validated:
        return {}
    means = []
    for seed in facts.seeds:
        firsts = {
            float(curves[seed].values[0])
            for curves in validated.values()
            if seed in curves and curves[seed].steps[0] == 0
        }
        if len(firsts) != 1:
            return {}
        means += firsts
    mean = sum(means) / len(means)
    return {start.method: mean} if math.isfinite(mean) else {}


def _drawn(facts: Findings, made: Any, name: str, *, alt: str, caption: str) -> Block:
    return Figure(pictures.save(made, facts.run.path / f"{name}.png"), alt=alt, caption=caption)
