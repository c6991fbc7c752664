"""Check of the noise level, and the mu that follows from it, for each differentiable input."""

from __future__ import annotations

import math

import numpy as np

from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.lines import Responses, draw_lines
from blackbox.conformance.noise_level import POINTS, measure_noise
from blackbox.conformance.probe import Probe
from blackbox.conformance.recommendation import Recommendation, Steps
from blackbox.conformance.recommended_mu import recommend

LINES, FEWEST = 32, 2
USELESS = 0.3  # expected error of central slopes, over their size, that deserves a warning


def noise_and_mu(probe: Probe) -> list[Finding]:
    """The noise level of the outputs, and one finding "mu of 'input'" for each differentiable input."""
    inputs = [place for place, spec in enumerate(probe.box.inputs) if spec.differentiable]
    if not inputs or not any(spec.differentiable for spec in probe.box.outputs):
        return [Finding("noise level", Verdict.SKIPPED, "No derivative is wanted of this box.")]
    responses = Responses(probe)
    # Half of the budget; a line costs at most three tries of ECnoise and two ladders of 30 steps both ways.
    affordable = probe.left / 2 / len(inputs) / (3 * POINTS + 2 * 60)
    count = LINES if math.isinf(affordable) else int(min(LINES, max(FEWEST, affordable)))
    findings, noise = [], np.zeros(len(responses.output))
    for place in inputs:
        along = draw_lines(probe, place, count, "directions")
        own = measure_noise(probe, responses, along)
        noise = np.maximum(noise, own)
        steps = recommend(probe, responses, along, own)
        single = recommend(probe, responses, draw_lines(probe, place, count, "coordinates"), own)
        findings.append(_mu(probe, place, single, steps))
    for place in responses.places:
        level = noise[responses.output == place]
        probe.measured.noise[place] = float(np.sqrt(np.square(level).mean())) * responses.spread[place]
    return [_noise(probe, responses, noise), *findings]


def _noise(probe: Probe, responses: Responses, noise: np.ndarray) -> Finding:
    relative = float(np.sqrt(np.square(noise).mean()))
    rounding = float(np.sqrt(np.square(responses.rounding).mean()))
    each = ", ".join(
        f"{probe.measured.noise[place]:.2g} in {probe.box.outputs[place].name!r}"
        for place in responses.places
    )
    if any(probe.measured.quanta[place] for place in responses.places):
        source = "as the quantisation makes it"
    elif relative <= 1.01 * rounding:
        source = "no more than rounding: the outputs themselves seem exact"
    else:
        source = f"{relative / rounding:.2g} times the rounding of the outputs" if rounding else "measured"
    return Finding("noise level", Verdict.OK, f"{each}; {source}.", relative, "of the outputs' spread")


def _mu(probe: Probe, place: int, single: Steps | None, along: Steps | None) -> Finding:
    spec = probe.box.inputs[place]
    name = f"mu of {spec.name!r}"
    if single is None or along is None:
        sentence = (
            "The outputs do not change along it, up to its own spread: no mu makes a gradient. If it has no "
            "effect, say differentiable=False; if outputs are steps, give samples that lie farther apart."
        )
        return Finding(name, Verdict.WARNING, sentence)
    found = Recommendation(spec.name, math.prod(spec.shape), single, along)
    probe.measured.recommendations.append(found)
    long_forward, long_central = found.long_directions
    said = (
        f"CGE: forward {single.forward:.1e}, central {single.central:.1e}. Directions of unit "
        f"length: {along.forward:.1e}, antithetic {along.central:.1e}; Gaussian, Rademacher: "
        f"{long_forward:.1e}, {long_central:.1e}. Slopes are off by "
        f"{_percent(single.forward_error)} forward, "
        f"{_percent(single.central_error)} central."
    )
    if single.linear:
        said += " No curvature stands out of the noise: forward steps are as large as the input's spread."
    best = min(single.forward_error, single.central_error, along.forward_error, along.central_error)
    if best > USELESS:
        said += " Noise drowns the slopes at any mu: lower it, or average over many queries."
        return Finding(name, Verdict.WARNING, said, single.forward, "forward, a coordinate")
    return Finding(name, Verdict.OK, said, single.forward, "forward, a coordinate")


def _percent(error: float) -> str:
    return "more than 100 %" if error > 1 else f"{100 * error:.2g} %"
