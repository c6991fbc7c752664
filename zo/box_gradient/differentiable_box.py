"""`DifferentiableBox`: the object that autograd calls, with its counts and its vector-Jacobian products."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.checks import check_count
from zo.box_gradient.autograd_function import BlackBoxCall
from zo.box_gradient.row_queries import Queries, alive_rows, as_rows, row_differences
from zo.box_gradient.row_rge import RowRGE
from zo.box_gradient.row_steps import plan_rows
from zo.box_gradient.tangent_rows import TangentRows
from zo.draws import Key
from zo.errors import ConfigurationError, FailedQueriesError
from zo.estimators.cge import CGE
from zo.same_run import refuse_other_run
from zo.tangents.tangent import Tangent


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

    Attributes:
        counts: see `RowCounts`.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        estimator: RowRGE | CGE | None,
        tangent: Tangent | None,
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
        self._tangent = None if tangent is None else TangentRows(box, tangent)

    @property
    def tangent(self) -> Tangent | None:
        """The copy that learns; None without one."""
        return None if self._tangent is None else self._tangent.tangent

    @property
    def trust(self) -> list[float | None]:
        """For each call in the last backward, in the order of forward, how wrong the tangent was.

        The relative error of its prediction of responses that it had not learned from: 0 is perfect, 1 no
        better than predicting none; without queries that of the outputs, 1 no better than their mean. None
        where there was nothing to predict. Of `SecantTangent` with orthogonal directions it is its prior's:
        none of them tells of another.
        """
        return [] if self._tangent is None else self._tangent.trust

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
        if self._tangent is not None and recorded:
            self._tangent.start()
        return outputs[0] if len(outputs) == 1 else outputs

    def metrics(self) -> dict[str, float]:
        """The trust of the last backward, in all and by call (from 1 on), as a run's metrics take it."""
        return {} if self._tangent is None else self._tangent.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Seed, counts (the draws hang on the calls among them), and what the tangent has learned."""
        rows = self._tangent
        learned = None
        if rows is not None:
            state, units = rows.tangent.state_dict(), rows.units.state_dict()
            learned = {"kind": repr(rows.tangent), "state": state, "units": units}
        return {"seed": self.seed, "counts": asdict(self.counts), "tangent": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: the state is of a run with another seed or tangent.
        """
        learned = state.get("tangent")  # states of older versions have none
        saved = {"seed": state["seed"], "tangent": repr(None) if learned is None else learned["kind"]}
        refuse_other_run("differentiable", {"seed": self.seed, "tangent": repr(self.tangent)}, saved)
        if self._tangent is not None and learned is not None:
            self._tangent.tangent.load_state_dict(learned["state"])
            self._tangent.units.load_state_dict(learned["units"])
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
        base = as_rows(self.box.inputs, inputs)
        results = as_rows(self.box.outputs, outputs)
        perturbed = [place for place, needs in enumerate(needed) if needs]
        used = {place: c for place, c in enumerate(cotangents) if c is not None}
        gradients = [torch.zeros_like(base[place]) for place in perturbed]
        alive = alive_rows(results)
        if len(alive) and used:
            queries = self._queries(call, base, perturbed, alive)
            arriving = {place: c.reshape(results[place].shape)[alive] for place, c in used.items()}
            pieces = self._estimates(call, queries, [tensor[alive] for tensor in results], arriving)
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient[alive] = piece.to(gradient.dtype).reshape(len(alive), *gradient.shape[1:])
        return tuple(g.reshape(inputs[place].shape) for g, place in zip(gradients, perturbed, strict=True))

    def _queries(self, call: int, base: list[Tensor], perturbed: list[int], alive: Tensor) -> Queries:
        plan = None
        if self.estimator is not None:
            plan = plan_rows(self.estimator, [base[place] for place in perturbed], alive, self.seed, call)
        return Queries(self.box, plan, [tensor[alive] for tensor in base], perturbed, self.max_rows)

    def _estimates(
        self, call: int, queries: Queries, outputs: list[Tensor], cotangents: dict[int, Tensor]
    ) -> list[Tensor]:
        """Gradients `(rows, size)` of the perturbed inputs, of the rows that are alive."""
        if self._tangent is not None:
            pairs = self._tangent.pairs(queries, outputs)
            self._count(call, pairs.valid)
            found = self._tangent.pull_back(call, pairs, cotangents)
            return [found[place] for place in queries.perturbed]
        differences, valid = row_differences(
            queries, {place: outputs[place] for place in cotangents}, cotangents
        )
        self._count(call, valid)
        assert queries.plan is not None  # only a tangent can do without
        sizes = [queries.inputs[place][0].numel() for place in queries.perturbed]
        return list(queries.plan.reduce(differences, valid).split(sizes, dim=1))

    def _count(self, call: int, valid: Tensor) -> None:
        rows, dropped = valid.numel(), int((~valid).sum())
        self.counts.rows += rows
        self.counts.dropped += dropped
        if rows and (dropped > self.max_dropped * rows or dropped == rows):
            raise FailedQueriesError(
                f"{self.box!r}, call {call}: expected at most {self.max_dropped:.0%} of {rows} perturbed "
                f"rows to fail, {dropped} did. See the black box's ledger; a smaller mu keeps them nearer to "
                "the base, max_dropped lets more of them go."
            )
