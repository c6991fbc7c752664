"""`DifferentiableBox`: the object that autograd calls, with its counts and its vector-Jacobian products."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.box_gradient.autograd_function import BlackBoxCall
from zo.box_gradient.row_directions import RowDirections
from zo.box_gradient.row_queries import alive_rows, as_rows, row_differences
from zo.box_gradient.row_steps import plan_rows
from zo.draws import Key
from zo.errors import ConfigurationError, FailedQueriesError
from zo.estimators.coordinate_wise import CoordinateWise
from zo.estimators.estimator import check_count


@dataclass
class RowCounts:
    """What a `DifferentiableBox` has spent.

    Attributes:
        calls: forward calls that recorded a gradient; they number the draws.
        rows: perturbed rows, evaluated in backward: each row's queries are its own.
        dropped: those of them left out because they failed.
    """

    calls: int = 0
    rows: int = 0
    dropped: int = 0


class DifferentiableBox:
    """A black box that autograd passes through; made by `differentiable`, which explains its settings.

    Calls number the draws in the order of forward, so a run that is resumed from `state_dict` goes on
    to the same bits. Under `torch.utils.checkpoint` forward runs again in backward: the base is evaluated
    twice, and the recomputation may take a number of its own, but the same one in every run.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        estimator: RowDirections | CoordinateWise,
        seed: int,
        max_rows: int | None,
        max_dropped: float,
    ) -> None:
        Key(seed)  # refuses what is no seed
        if max_rows is not None:
            check_count("differentiable", "max_rows", max_rows)
        if not 0 <= max_dropped <= 1:
            raise ConfigurationError(
                f"differentiable, max_dropped: expected a fraction in [0, 1], got {max_dropped!r}. "
                "0.1 lets every tenth query fail."
            )
        self.box = box
        self.estimator = estimator
        self.seed = seed
        self.max_rows = max_rows
        self.max_dropped = max_dropped
        self.counts = RowCounts()

    def __call__(self, *arrays: Any) -> Any:  # noqa: ANN401 - same kind as comes in
        """Evaluate every row; as the box itself, and with a graph where an input requires a gradient.

        Raises:
            What the box raises; from backward also what it raises on a perturbed row, and
            FailedQueriesError: more than `max_dropped` of the queries failed. Gradients that autograd
                had reached before are filled: zero them before going on.
            DerivativeError: forward mode, `vmap`, or a derivative of the gradient.
        """
        specs = self.box.inputs
        if len(arrays) != len(specs) or not all(isinstance(array, Tensor) for array in arrays):
            return self.box(*arrays)  # NumPy arrays carry no gradient; all else is the box's to refuse
        # Detached, an input without derivative neither makes a graph nor is perturbed.
        pairs = zip(specs, arrays, strict=True)
        inputs = [array if spec.differentiable else array.detach() for spec, array in pairs]
        recorded = torch.is_grad_enabled() and any(array.requires_grad for array in inputs)
        outputs = BlackBoxCall.apply(self, self.counts.calls, *inputs)
        self.counts.calls += recorded
        return outputs[0] if len(outputs) == 1 else outputs

    def state_dict(self) -> dict[str, Any]:
        """Seed and counts; the draws hang on the calls among them."""
        return {"seed": self.seed, "counts": asdict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: the state is of a run with another seed.
        """
        if state["seed"] != self.seed:
            raise ConfigurationError(
                f"differentiable: expected the state of a run with seed {self.seed}, got one with "
                f"{state['seed']}. Make it with that seed, or start anew."
            )
        self.counts = RowCounts(**state["counts"])

    @torch.no_grad()
    def pull_back(
        self,
        call: int,
        needed: tuple[bool, ...],
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """What backward does: estimate the gradients of one call's inputs from those of its outputs.

        Args:
            call: its number.
            needed: which inputs require a gradient.
            inputs: all of them, `(*leading, *spec.shape)`.
            outputs: the base.
            cotangents: gradients of the outputs; None for those that the loss does not use.

        Returns:
            The gradients of the needed inputs, in their shapes, dtypes and device.
        """
        box = self.box
        base = as_rows(box.inputs, inputs)
        results = as_rows(box.outputs, outputs)
        perturbed = [place for place, needs in enumerate(needed) if needs]
        used = {place: c for place, c in enumerate(cotangents) if c is not None}
        gradients = [torch.zeros_like(base[place]) for place in perturbed]
        alive = alive_rows(results)
        if len(alive) and used:
            plan = plan_rows(self.estimator, [base[place] for place in perturbed], alive, self.seed, call)
            differences, valid = row_differences(
                box,
                plan,
                [tensor[alive] for tensor in base],
                perturbed,
                {place: results[place][alive] for place in used},
                {place: c.reshape(results[place].shape)[alive] for place, c in used.items()},
                self.max_rows,
            )
            self._count(call, valid)
            pieces = plan.reduce(differences, valid).split([g[0].numel() for g in gradients], dim=1)
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient[alive] = piece.to(gradient.dtype).reshape(len(alive), *gradient.shape[1:])
        return tuple(g.reshape(inputs[place].shape) for g, place in zip(gradients, perturbed, strict=True))

    def _count(self, call: int, valid: Tensor) -> None:
        rows, dropped = valid.numel(), int((~valid).sum())
        self.counts.rows += rows
        self.counts.dropped += dropped
        if dropped > self.max_dropped * rows or dropped == rows:
            raise FailedQueriesError(
                f"{self.box!r}, call {call}: expected at most {self.max_dropped:.0%} of {rows} perturbed "
                f"rows to fail, {dropped} did. See the black box's ledger; a smaller mu keeps them nearer to "
                "the base, max_dropped lets more of them go."
            )
