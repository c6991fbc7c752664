"""The check of layouts: a vector that goes in and out may be a line of cells, without its specs saying so."""

from __future__ import annotations

import numpy as np
import torch

from blackbox.arrays import spreads
from blackbox.conformance.check_report import Finding, Verdict
from blackbox.conformance.probe import Probe
from blackbox.spec import ArraySpec

NAME = "layout"
FEWEST = 12  # numbers of a line
SAMPLES, PLACES = 2, 6  # at which numbers are moved, and how many of each input
MOVED = 0.1  # of a number's spread
BESIDE = 8  # part of a line that counts as near, on either side
LOCAL = 0.9  # of the response of other numbers: what must lie near
WRAPS = 1e-3  # of it: what must lie across the ends, for them to meet
DIGITS = 1e3  # roundings, above which a response counts


def layout(probe: Probe) -> Finding:
    """Move single numbers of vectors, and see whether those beside them respond."""
    box = probe.box
    outputs = [place for place, spec in enumerate(box.outputs) if is_open(spec)]
    inputs = [
        place
        for place, spec in enumerate(box.inputs)
        if is_open(spec) and any(spec.shape == box.outputs[output].shape for output in outputs)
    ]
    if not inputs:
        return Finding(NAME, Verdict.OK, "No vector goes in and out whose layout its ArraySpec leaves open.")
    responses: list[tuple[str, np.ndarray, np.ndarray]] = []
    responded: list[str] = []
    for place in inputs:
        size = box.inputs[place].shape[0]
        output = next(number for number in outputs if box.outputs[number].shape == (size,))
        numbers = places_of(size)
        moved = probe.pick(np.repeat(np.arange(SAMPLES), len(numbers)))
        array = moved[place]
        steps = spreads(torch.from_numpy(probe.samples[place])).numpy()
        steps = MOVED * np.where(steps > 0, steps, 1.0)
        where = np.arange(len(array)), np.tile(numbers, SAMPLES)
        array[where] += steps[where[1]]
        base_rows = np.repeat(probe.base[output][:SAMPLES], len(numbers), axis=0)
        response = probe(moved)[output].astype(np.float64) - base_rows
        rounding = np.finfo(base_rows.dtype).eps * np.abs(base_rows).max()
        response[np.abs(response) < DIGITS * rounding] = 0.0
        responses.append((box.inputs[place].name, response, where[1]))
        responded.append(box.outputs[output].name)
    return told(responses, responded)


def places_of(size: int) -> np.ndarray:
    """Choose the numbers of a vector that are moved: both ends, and others between."""
    return np.unique(np.linspace(0, size - 1, PLACES).astype(int))


def told(found: list[tuple[str, np.ndarray, np.ndarray]], outputs: list[str]) -> Finding:
    """Judge layouts by responses.

    Args:
        found: for each input its name, the responses `(moves, size)` of a vector of the same size, and the
            number that each move was of, `(moves,)`.
        outputs: the names of the vectors that responded.
    """
    shares = [near for _, response, places in found if (near := _near(response, places)) is not None]
    if not shares:
        return Finding(NAME, Verdict.OK, "Each number of a vector responds to its own alone.")
    local = min(near for near, _ in shares)
    if local < LOCAL:
        return Finding(
            NAME, Verdict.OK, "Vectors are no lines of cells.", local, "of a response is near what was moved"
        )
    grid = "blackbox.Grid(periodic=True)" if max(wraps for _, wraps in shares) > WRAPS else "'grid'"
    names = " and ".join(dict.fromkeys([*(repr(name) for name, _, _ in found), *map(repr, outputs)]))
    return Finding(
        NAME,
        Verdict.WARNING,
        f"Numbers of {names} respond to those beside them: they look like a line of cells. Say "
        f"layout={grid} in their ArraySpecs, so that learned tangents learn the law of one cell for all, "
        "from far fewer rows. If they are none, say layout=None.",
        local,
        "of a response is near what was moved",
    )


def _near(response: np.ndarray, places: np.ndarray) -> tuple[float, float] | None:
    """Return the share of other numbers' response that is near, and the part of that across the ends."""
    size = response.shape[1]
    distances = np.arange(size) - places[:, None]
    round_ends = np.minimum(np.abs(distances), size - np.abs(distances))
    squares = np.where(np.isfinite(response), response, 0.0) ** 2 * (distances != 0)
    if not (whole := squares.sum()):
        return None
    near = round_ends <= max(2, size // BESIDE)
    across = near & (np.abs(distances) > size // 2)
    return float((squares * near).sum() / whole), float((squares * across).sum() / (squares * near).sum())


def is_open(spec: ArraySpec) -> bool:
    """Say whether an array is a vector that may be a line of cells, and does not say so."""
    return spec.differentiable and spec.layout == "auto" and len(spec.shape) == 1 and spec.shape[0] >= FEWEST
