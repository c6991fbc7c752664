"""`Prior`: a differentiable model below one that learns, which is shown what the first leaves: y - f(x)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.errors import ConfigurationError
from zo.tangents.models.form import Form
from zo.tangents.models.model_tangent import ModelTangent
from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised, Tangent

Below: TypeAlias = Callable[..., Any] | BlackBoxFunction | Tangent
"""What may be a prior: a function of torch tensors, a module, a box with a derivative, a tangent."""

MOST_BYTES = 2**26  # of the outputs that are kept; decision 195


class Prior:
    """A differentiable model f of a box, and its outputs at rows that were asked before.

    A model above it learns the rest, y - f(x), and the sum of both stands for the box (Kennedy and O'Hagan,
    2000). The prior does not learn. A copy of a tangent shares it, so that its rows are counted once.

    Args:
        tangent: the tangent of the model, with values.
        inputs: the box's inputs that models see; None until a call shows them.

    Attributes:
        tangent: the argument of that name.
        rows: the number of rows at which its outputs were asked so far. Outputs are kept, up to 64 MiB, and a
            row that is asked again is not counted.
    """

    def __init__(self, tangent: Tangent, inputs: Sequence[ArraySpec] | None = None) -> None:
        self.tangent, self.rows = tangent, 0
        self._cache: OrderedDict[str, Tensor] = OrderedDict()  # outputs of a row, by its inputs
        self._shapes = None if inputs is None else _shapes(inputs)

    @classmethod
    def of(
        cls, who: str, prior: Below | Prior | None, inputs: Sequence[ArraySpec] | None = None
    ) -> Prior | None:
        """Make a prior from a user's argument; None for none.

        Raises:
            ConfigurationError: the argument cannot be a prior, or is a box without a derivative.
        """
        if prior is None or isinstance(prior, Prior):
            return prior
        if isinstance(prior, BlackBoxFunction):
            if not getattr(prior, "has_derivative", False):
                raise ConfigurationError(
                    f"{who}, prior: expected a box that answers with a derivative, got {prior!r}, which has "
                    "none. Give a differentiable function, or a tangent that has learned from its rows."
                )
            return cls(ModelTangent(getattr(prior, "reference"), repr(prior)), inputs)  # noqa: B009
        if isinstance(prior, Tangent):
            return cls(prior, inputs)
        if not callable(prior):
            raise ConfigurationError(
                f"{who}, prior: expected a function of torch tensors, a module, a box with a derivative or a "
                f"tangent, got {prior!r}. Give a model that takes the box's inputs and gives its outputs."
            )
        return cls(ModelTangent(prior), inputs)

    def know(self, inputs: Sequence[ArraySpec]) -> None:
        """Know the box's inputs before a call has shown them."""
        self._shapes = _shapes(inputs)

    @torch.no_grad()
    def values(self, rows: CallPairs) -> Tensor:
        """The outputs at rows, `(rows, size_out)`; those that were asked before are not asked again.

        Raises:
            ConfigurationError: the prior knows no values, or gives other shapes than the box.
        """
        self._shapes = [None if array is None else tuple(array.shape[1:]) for array in rows.others]
        names = _names(rows)
        new = list({name: place for place, name in enumerate(names) if name not in self._cache}.values())
        new_outputs: dict[str, Tensor] = {}
        if new:
            answers = self._asked(
                rows if len(new) == len(names) else rows.some(torch.tensor(new, device=rows.z.device))
            )
            new_outputs = {names[place]: answer for place, answer in zip(new, answers, strict=True)}
            self.rows += len(new)
        outputs = {
            name: new_outputs[name] if name in new_outputs else self._cache[name].to(rows.z) for name in names
        }
        for name, answer in outputs.items():
            if name in new_outputs:
                self._cache[name] = answer.clone()
            self._cache.move_to_end(name)
        if not names:
            return self._asked(rows)
        most = max(1, MOST_BYTES // max(1, outputs[names[0]].numel() * rows.z.element_size()))
        while len(self._cache) > most:
            self._cache.popitem(last=False)
        return torch.stack([outputs[name] for name in names])

    def _asked(self, rows: CallPairs) -> Tensor:
        """The outputs, by the model itself."""
        values = self.tangent.at(rows).values
        if values is None:
            raise ConfigurationError(
                f"prior: expected a model that knows the box's values, got {self.tangent!r}, which knows of "
                "changes alone. Give one that has learned, or a function."
            )
        return values.detach()

    def rest(self, rows: CallPairs) -> CallPairs:
        """The rows as the model above is shown them: what comes out less what the prior gives."""
        return replace(rows, y=rows.y - self.values(rows)) if len(rows.y) else rows

    def flat(self, form: Form, z: Tensor, others: Tensor) -> Tensor:
        """`values` of rows whose other inputs are end to end, as a window has them."""
        pieces = iter(others.split([torch.Size(shape).numel() for shape in form.others], dim=1))
        shapes = self._shapes or [None for _ in form.inputs]
        arrays = tuple(None if s is None else next(pieces).reshape(len(z), *s) for s in shapes)
        return self.values(CallPairs(form.inputs, form.outputs, z, others=arrays if form.others else ()))

    def over(self, calls: Sequence[CallPairs], rests: Sequence[Linearised]) -> list[Linearised]:
        """The prior and what was learned above it, at each call."""
        return [_Sum(rows, self, rest) for rows, rest in zip(calls, rests, strict=True)]

    def at(self, rows: CallPairs) -> Linearised:
        """The prior alone; its outputs at these rows are kept."""
        if isinstance(self.tangent, ModelTangent):
            return self.tangent.at(rows, partial(self.values, rows))
        return self.tangent.at(rows)

    def state_dict(self) -> dict[str, Any]:
        """Save the answers of the prior, so that a resumed run does not ask again; not the prior itself."""
        return {"rows": self.rows, "names": list(self._cache), "kept": list(self._cache.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.rows = state["rows"]
        self._cache = OrderedDict(zip(state["names"], state["kept"], strict=True))

    def __deepcopy__(self, copies: dict[int, Any]) -> Prior:
        """Itself: it does not learn, and may hold a server."""
        return self

    def __repr__(self) -> str:
        """The model's name."""
        return repr(self.tangent)


class _Sum(Linearised):
    """A prior and what was learned of its rest, at the rows of a call."""

    def __init__(self, rows: CallPairs, prior: Prior, rest: Linearised) -> None:
        super().__init__(rows)
        self._prior, self._rest = prior, rest

    @cached_property
    def _below(self) -> Linearised:
        return self._prior.at(self.rows)

    @property
    def values(self) -> Tensor:
        """The values of the sum; those of the prior alone before anything was learned."""
        base, more = self._prior.values(self.rows), self._rest.values
        return base if more is None else base + more

    def push(self, d: Tensor) -> Tensor:
        """J d of the sum."""
        return self._below.push(d) + self._rest.push(d)

    def pull(self, v: Tensor) -> Tensor:
        """J^T v of the sum."""
        return self._below.pull(v) + self._rest.pull(v)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """Return the change of the sum."""
        return self._below.to(z, others) + self._rest.to(z, others)


def said(prior: Prior | None) -> str:
    """The prior as the repr of a tangent has it, behind other settings; nothing for none."""
    return "" if prior is None else f", prior={prior!r}"


def _shapes(inputs: Sequence[ArraySpec]) -> list[tuple[int, ...] | None]:
    """The shape of each input that models see, None for a differentiable one."""
    return [None if spec.differentiable else spec.shape for spec in inputs if spec.modelled]


def _names(rows: CallPairs) -> list[str]:
    """A name of each row's inputs."""
    parts = [rows.z, *(array for array in rows.others if array is not None)]
    columns = [part.detach().flatten(1).cpu().contiguous().view(torch.uint8).numpy() for part in parts]
    of_rows = zip(*columns, strict=True)
    return [
        hashlib.blake2b(b"".join(c.tobytes() for c in row), digest_size=16).hexdigest() for row in of_rows
    ]
