"""`FrozenModel`: a tangent that has learned from rows and learns no more, at arrays of its box; no row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.errors import TangentError
from zo.recorded_rows import RecordedRows
from zo.tangents.models.at_rows import blocks
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.candidates import SHIPPED, Candidate, candidates
from zo.tangents.models.kernel import LARGEST, KernelTangent
from zo.tangents.models.mlp import MLPTangent
from zo.tangents.models.selected import MODELS, STEPS, SelectedTangent
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import Tangent

CENTRES, WINDOW = 4000, 100_000  # of a kernel, whose fit takes their cube; rows that are learned; at most
STEP, AGREES = 1e-4, 1e-2  # of a difference that checks a Hessian, in spreads of inputs; and how well it must

Parts = Sequence[Tensor | None]
"""For each input or output of a box its `(rows, *shape)`, or None for zero or for no derivative."""


class FrozenModel:
    """A tangent that learns no more, at rows of its box: outputs with a graph, and products.

    Args:
        box: the box, whose specs say what the arrays are.
        tangent: has learned, or is about to; nobody else has it.
        hessian: whether it has a second derivative.
    """

    def __init__(self, box: BlackBoxFunction, tangent: Tangent, hessian: bool = False) -> None:
        self.inputs, self.outputs = box.inputs, box.outputs
        self.tangent, self.hessian = tangent, hessian

    @classmethod
    def learned(cls, box: BlackBoxFunction, tangent: Tangent, rows: RecordedRows) -> FrozenModel:
        """The model of a copy of a tangent that learns from rows.

        Raises:
            TangentError: it cannot.
        """
        model = cls(box, copy.deepcopy(tangent))
        y = model._flat(box.outputs, rows.outputs, rows.inputs[0])
        z, pairs = model._pairs(rows.inputs)
        if isinstance(model.tangent, AutoTangent):  # whose contest is in `fit`
            arrays = [t.double() if t.is_floating_point() else t for t in rows.inputs]
            answers = [part for part in model._apart(box.outputs, y) if part is not None]
            model.tangent.fit(arrays, answers, STEPS)
        else:
            model.tangent.see(replace(pairs, y=y, response_scale=y.std(0)))
            model.tangent.learn(STEPS)
        units = (scales.std(0).clamp_min(1e-12) for scales in (z, y))
        model.hessian = model._bends([tensor[:2] for tensor in rows.inputs], *units)
        return model

    @property
    def words(self) -> str:
        """The tangent, in words; of one that chooses, what it chose."""
        if isinstance(self.tangent, AutoTangent | SelectedTangent):
            return repr(self.tangent.model)
        return repr(self.tangent)

    def values(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The model's outputs, `(rows, *shape)`, with the graph of inputs; None for those without derivative.

        Raises:
            TangentError: it knows no values.
        """
        return self._apart(self.outputs, self._following(*self._pairs(inputs)))

    def pull(self, inputs: Sequence[Tensor], cotangents: Parts) -> list[Tensor | None]:
        """J^T v, by input."""
        z, pairs = self._pairs(inputs)
        v = self._flat(self.outputs, cotangents, inputs[0])
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(self._following(z, pairs), z, v, materialize_grads=True)
        return self._apart(self.inputs, pulled)

    @torch.no_grad()
    def push(self, inputs: Sequence[Tensor], changes: Parts) -> list[Tensor | None]:
        """J d, by output."""
        _, pairs = self._pairs(inputs)
        d = self._flat(self.inputs, changes, inputs[0])
        return self._apart(self.outputs, self.tangent.at(pairs).push(d))

    def bend(self, inputs: Sequence[Tensor], cotangents: Parts, changes: Parts) -> list[Tensor | None]:
        """The derivative of J^T v along d, by input; of a model with a second derivative alone."""
        v = self._flat(self.outputs, cotangents, inputs[0])
        d = self._flat(self.inputs, changes, inputs[0])
        bent = []
        for some in blocks(d):  # of more at once a tangent has one derivative alone
            z, pairs = self._pairs([tensor[some] for tensor in inputs])
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                y = self._following(z, pairs)
                (pulled,) = torch.autograd.grad(y, z, v[some], create_graph=True, materialize_grads=True)
                if not pulled.requires_grad:  # of a line
                    pulled = pulled + 0 * z
                bent += torch.autograd.grad(pulled, z, d[some], materialize_grads=True)
        return self._apart(self.inputs, torch.cat(bent))

    def errors(self, rows: RecordedRows) -> dict[str, float]:
        """The root mean square error of the model's values at rows, over the answers' spread, by output."""
        errors = {}
        with torch.no_grad():
            values = self.values(rows.inputs)
        for spec, answer, value in zip(self.outputs, rows.outputs, values, strict=True):
            if value is not None:
                answer = answer.double()
                missed, spread = (value - answer).norm(), (answer - answer.mean(0)).norm()
                size = float(spread) or float(answer.norm()) or 1.0  # of what is the same in all rows
                errors[spec.name] = float(missed) / size
        return errors

    def _following(self, z: Tensor, pairs: CallPairs) -> Tensor:
        """The model's outputs, `(rows, size_out)`, with a graph of z, once or as often as it is right."""
        at = self.tangent.at(pairs)
        if at.values is None:
            raise TangentError(
                f"frozen: expected a tangent that knows the box's values, by which it is judged, got "
                f"{self.tangent!r}. Take one that is fitted to values, such as KernelTangent."
            )
        return at.values + (at.to(z, pairs.others) if self.hessian else at.by_products(z))

    def _bends(self, inputs: Sequence[Tensor], unit_in: Tensor, unit_out: Tensor) -> bool:
        """Say whether autograd gives a second derivative of the model that agrees with differences."""
        z, pairs = self._pairs(inputs)
        at = self.tangent.at(pairs)
        draws = torch.Generator().manual_seed(0)
        v = torch.randn(len(z), len(unit_out), generator=draws, dtype=z.dtype).to(z.device)
        try:
            return torch.autograd.gradgradcheck(
                lambda moves: at.to(z + moves * unit_in, pairs.others) / unit_out,
                torch.zeros_like(z, requires_grad=True),
                v.requires_grad_(),
                eps=STEP,
                atol=AGREES,
                rtol=AGREES,
                nondet_tol=AGREES,
                raise_exception=False,
                fast_mode=True,
            )
        except RuntimeError:  # autograd goes through it once
            return False

    def _pairs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, CallPairs]:
        """Differentiable inputs `(rows, size_in)`, with their graph; and rows as a tangent sees them."""
        moving, following = (
            tuple(spec for spec in specs if spec.differentiable) for specs in (self.inputs, self.outputs)
        )
        z = self._flat(self.inputs, inputs, inputs[0])
        specified = zip(self.inputs, inputs, strict=True)
        fixed_arrays = tuple(None if spec.differentiable else t for spec, t in specified if spec.modelled)
        return z, CallPairs(moving, following, z.detach(), others=fixed_arrays)

    def _flat(self, specs: Sequence[ArraySpec], arrays: Parts, like: Tensor) -> Tensor:
        """Arrays with a derivative end to end, `(rows, size)` in float64; zero for those that are None."""
        rows, options = len(like), {"dtype": torch.float64, "device": like.device}
        parts = [
            torch.zeros(rows, math.prod(spec.shape), **options)
            if array is None
            else array.to(**options).reshape(rows, math.prod(spec.shape))
            for spec, array in zip(specs, arrays, strict=True)
            if spec.differentiable
        ]
        return torch.cat(parts, 1)

    def _apart(self, specs: Sequence[ArraySpec], flat: Tensor) -> list[Tensor | None]:
        """Split flat rows into the arrays that `_flat` joined."""
        moving = tuple(spec for spec in specs if spec.differentiable)
        pieces = iter(flat.split(sizes(moving), dim=1))
        return [next(pieces).reshape(len(flat), *s.shape) if s.differentiable else None for s in specs]


def usual_tangent(box: BlackBoxFunction, seed: int) -> Tangent:
    """Make the model that learns a box where the user names no tangent."""
    specs = Specs.of(box)
    if specs.structure.kind != "table":
        return AutoTangent(box, seed)
    many = sum(sizes(tuple(spec for spec in specs.outputs if spec.learned))) > LARGEST
    models: dict[str, Callable[[], ValueTangent]] = {} if many else dict(MODELS)
    if not many:
        models["kernel"] = lambda: KernelTangent(CENTRES, window=WINDOW)
    learning = replace(MLPTangent.LEARNING, window=WINDOW)
    models["mlp"] = lambda: MLPTangent(learning=learning, seed=seed)

    def made(candidate: Candidate) -> Callable[[], ValueTangent]:
        return lambda: candidate.make(box, seed)

    added = [
        candidate
        for candidate in candidates()
        if candidate.name not in SHIPPED and candidate.fits(specs) is None
    ]
    models.update((candidate.name, made(candidate)) for candidate in added)
    return SelectedTangent(models, window=WINDOW)
