"""Rounding of the boxes' answers, as far as it hides their responses from a check."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.significant_digits import significant_digits
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.record.window import Window

FEWEST_DIGITS = 4  # that a program is supposed to have printed; fewer are shares, labels and the like


def digits_of(boxes: Sequence[BlackBoxFunction], window: Window) -> dict[tuple[int, int], int]:
    """Significant digits of boxes' answers, by box and output, where these are fewer than their dtype's.

    Shares and labels, as of a forest of 50 trees, count as full digits: such a box is constant in pieces.
    """
    answers: dict[tuple[int, int], list[Tensor]] = {}
    for call in window.calls:
        for place, (spec, output) in enumerate(zip(boxes[call.box].outputs, call.outputs, strict=True)):
            if spec.learned:
                answers.setdefault((call.box, place), []).append(output.detach().reshape(-1))
    fewer = {}
    for key, parts in answers.items():
        if parts[0].dtype in (torch.float32, torch.float64):
            digits = significant_digits(torch.cat(parts).cpu().numpy())
            if digits is not None and digits >= FEWEST_DIGITS:
                fewer[key] = digits
    return fewer


def rounding_of(gradient: StepGradient, digits: dict[tuple[int, int], int]) -> list[Tensor]:
    """The standard deviation of the rounding of responses in each call, `(rows, size_out)`."""
    deviations = []
    for call, at in zip(gradient.window.calls, gradient.at_calls, strict=True):
        size = at.rows.y.double().abs()
        units = size * torch.finfo(at.rows.y.dtype).eps
        first = 0
        for place, spec in enumerate(gradient.boxes[call.box].outputs):
            if spec.learned:
                last = first + math.prod(spec.shape)
                if (call.box, place) in digits:
                    power = size[:, first:last].log10().floor() + 1 - digits[call.box, place]
                    units[:, first:last] = 10.0**power  # 0 of an answer of 0
                first = last
        deviations.append(units / math.sqrt(6))  # of two, within one each
    return deviations
