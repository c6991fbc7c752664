"""Check of quantisation: outputs that are all on a grid, and the grid's step."""

from __future__ import annotations

import numpy as np

from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.lines import draw_lines
from blackbox.conformance.probe import Probe

ENOUGH = 12  # different values that make a grid no accident
VALUES = 300  # of those, at most so many are looked at: gaps among more come down to rounding


def quantisation(probe: Probe) -> Finding:
    """Answers to the samples and to points on short lines between them."""
    name = "quantisation"
    floats = [place for place, spec in enumerate(probe.box.outputs) if spec.differentiable]
    collected = [[probe.base[place].reshape(-1)] for place in floats]
    for place, spec in enumerate(probe.box.inputs):
        if spec.differentiable:
            lines = draw_lines(probe, place, 4, "directions")
            answers = probe(lines.inputs(probe, np.linspace(-0.5, 0.5, 9) * lines.longest))
            for values, output in zip(collected, floats, strict=True):
                values.append(answers[output].reshape(-1))
    found = []
    for place, values in zip(floats, collected, strict=True):
        step = grid_step(np.concatenate(values))
        probe.measured.quanta[place] = step
        if step:
            found.append((step, probe.box.outputs[place].name))
    if not found:
        return Finding(name, Verdict.OK, "Outputs are on no grid that is wider than their rounding.", 0.0, "")
    step, output = max(found)
    sentence = (
        f"Output {output!r} comes in steps of {step:.3g}: below the mu that is recommended, differences are "
        "mostly zero. Have more digits written, or keep to that mu."
    )
    return Finding(name, Verdict.WARNING, sentence, step, f"step of {output!r}")


def grid_step(values: np.ndarray) -> float:
    """The step of the widest grid that holds all values; 0 if that is their own rounding.

    Args:
        values: `(n,)` floats; those that are not finite are left out.
    """
    eps = float(np.finfo(values.dtype).eps)
    values = values[np.isfinite(values)].astype(np.float64)
    different = np.unique(values)
    if len(different) < 2 or (len(different) < ENOUGH and len(values) < 4 * len(different)):
        return 0.0
    rounding = eps * np.abs(different).max()
    if len(different) > VALUES:
        different = different[np.random.default_rng(0).permutation(len(different))[:VALUES]]
        different.sort()
    offsets = different - different[0]
    gaps = np.diff(different)
    gaps = gaps[gaps > 8 * rounding]  # 0.1 and 0.1 + eps are one value of the grid
    if not len(gaps):
        return 0.0
    for part in range(1, 11):  # the smallest gap seen may be several steps wide
        step = float(gaps.min()) / part
        steps = np.rint(offsets / step)
        step = float(offsets[-1] / steps[-1])  # from the longest distance, where rounding counts least
        allowed = 4 * rounding / step
        if allowed > 0.05:
            return 0.0  # finer than can be told from rounding
        if (np.abs(offsets / step - np.rint(offsets / step)) <= allowed + 1e-9).all():
            return step
    return 0.0
