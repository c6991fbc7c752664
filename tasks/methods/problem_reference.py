"""A problem's `reference`, the box with a derivative that first order takes in the box's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.notices import warn
from tasks.errors import ProblemError, ProblemWarning
from tasks.methods.autograd import Stand
from tasks.problem.data import evaluating
from tasks.rows.tally import count_alike
from zo.batches import Batch

DIFFERENT = 0.01  # of how much a box's output varies: what is further off is no reference of it
ROUNDING = 1000.0  # units in the last place: what a solver of many operations may be off
NOISY = 3.0  # times what two answers of the box to the same rows are apart


def with_derivative(box: BlackBoxFunction, reference: Stand) -> Stand:
    """A reference that autograd passes through; its rows are counted as the box's.

    Of several processes, which all call it alike, the first one counts.
    """

    def call(*arrays: Tensor) -> Any:
        rows = arrays[0].shape[: arrays[0].ndim - len(box.inputs[0].shape)].numel()
        outputs = reference(*arrays)
        tensors = _tuple(outputs)
        tracked = torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
        if tracked and not any(output.requires_grad for output in tensors):
            raise ProblemError(
                "reference: expected outputs that autograd can go back from, got outputs that are cut from "
                "the graph: first-order would train without the box's derivative. Compute them from the "
                "inputs by torch's operations, without NumPy, detach() or no_grad()."
            )
        first = tensors[0].detach()
        whole = torch.isfinite(first.reshape(rows, -1)).all(dim=1)
        failures = int((~whole).sum())
        count_alike(box, rows_asked=rows, rows_run=rows, rows_failed=failures, rows_not_finite=failures)
        return outputs

    return call


@torch.no_grad()
def compare(
    network: nn.Module,
    objective: Callable[[nn.Module, Any], Tensor],
    batch: Batch,
    references: Mapping[BlackBoxFunction, Stand],
) -> None:
    """Refuse a reference whose values are not the box's: first order would train on something else.

    The objective is evaluated once, in evaluation mode; in each of its calls both get the same rows. Where
    they differ by more than rounding, the box is asked a second time, for its noise. Rows that fail in
    either are left out.

    Raises:
        ProblemError: A value is off by more than a hundredth of how much the box's output varies.

    Warns:
        ProblemWarning: It is off by less than that, but by more than rounding and the box's noise.
    """
    worst: list[tuple[float, str]] = []
    stands = {id(box): stand for box, stand in references.items()}

    def answer(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        arrays = tuple(array.detach() for array in arrays)
        ours = box.call(*arrays)
        if id(box) in stands:
            with intercepted(None):  # a reference may call the box
                theirs = _tuple(stands[id(box)](*arrays))
            again: tuple[Any, ...] = ()
            for place, (spec, one) in enumerate(zip(box.outputs, _tuple(ours), strict=True)):
                size, rounding, sentence = deviation(spec, one, theirs[place])
                if size > rounding:
                    again = again or _tuple(box.call(*arrays))
                    if size > NOISY * deviation(spec, one, again[place])[0]:
                        worst.append((size, sentence))
        return ours

    # neither draws nor running means of training are to depend on it
    with torch.random.fork_rng(devices=()), evaluating(network), intercepted(answer):
        objective(network, batch)
    if worst:
        size, sentence = max(worst)
        if size > DIFFERENT:
            raise ProblemError(
                f"{sentence} First order would train on something else. Compute in reference what "
                "the box computes, or leave out first-order."
            )
        warn(f"{sentence} First order trains on the reference, and is judged by the box.", ProblemWarning)


def deviation(spec: ArraySpec, box: Tensor, reference: Tensor) -> tuple[float, float, str]:
    """Find where two answers `(*leading axes, *spec.shape)` to the same rows are furthest apart.

    Returns:
        How far, in units of how much the output varies from row to row (of its largest value where it does
        not); what rounding may make of that, in the same units; and both in a sentence. Zeros where no row is
        finite in both.
    """
    if box.shape != reference.shape:
        raise ProblemError(
            f"reference: expected output {spec.name!r} of the box's shape {tuple(box.shape)}, got "
            f"{tuple(reference.shape)}."
        )
    rows = box.shape[: box.ndim - len(spec.shape)].numel()
    ours, theirs = (tensor.detach().double().cpu().reshape(rows, -1) for tensor in (box, reference))
    alive = (ours.isfinite() & theirs.isfinite()).all(dim=1)
    if not alive.any():
        return 0.0, 0.0, ""
    distances = torch.where(alive[:, None], (theirs - ours).abs(), 0.0)
    row, number = divmod(int(distances.argmax()), distances.shape[1])
    largest = float(ours[alive].abs().max())
    varies = float((ours[alive] - ours[alive].mean(dim=0)).abs().max()) or largest or 1.0
    kinds = [torch.finfo(array.dtype).eps for array in (box, reference) if array.is_floating_point()]
    size = float(distances[row, number]) / varies
    rounding = ROUNDING * max(kinds, default=0.0) * largest / varies
    box_value, reference_value = float(ours[row, number]), float(theirs[row, number])
    sentence = (
        f"reference: expected the box's values, got {reference_value:.6g} for {spec.name!r} in row {row}, "
        f"where the box gives {box_value:.6g}: they differ by {size:.2g} times what that output varies "
        "between rows."
    )
    return size, rounding, sentence


def _tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
