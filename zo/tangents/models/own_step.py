"""`OwnStepTangent`: for calls in stages, whose answers may go by the stages of their own step alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import Arrays, as_tensors
from zo.tangents.models.view import ViewTangent
from zo.tangents.record.pairs import CallPairs, sizes


class OwnStepTangent(ViewTangent):
    """The derivative of a model that is not shown the step before.

    A Runge-Kutta scheme goes by the stages of its own step alone; an Adams scheme goes by earlier steps. A
    model that is shown more than an answer goes by has a derivative by all of it, and more to learn.

    Args:
        specs: the specs of the box.
        earlier: the names of the inputs that come from the step before.
        seed: the seed of all draws.
    """

    def __init__(self, specs: Specs, earlier: Collection[str], seed: int = 0) -> None:
        learned = tuple(spec for spec in specs.inputs if spec.learned)
        self._inputs = tuple(spec for spec in learned if spec.name not in earlier)
        masks = [
            torch.full((n,), s.name not in earlier) for s, n in zip(learned, sizes(learned), strict=True)
        ]
        self._numbers = torch.cat(masks).nonzero().flatten()  # of z
        modelled = [spec for spec in specs.inputs if spec.modelled]
        self._places = [place for place, spec in enumerate(modelled) if spec.name not in earlier]
        self._is_own = [spec.name not in earlier for spec in specs.inputs]
        own_inputs = tuple(spec for spec in specs.inputs if spec.name not in earlier)
        self._auto = AutoTangent(Specs(own_inputs, specs.outputs), seed)
        super().__init__(self._auto)

    def shown(self, rows: CallPairs) -> CallPairs:
        """The rows without what comes from the step before."""
        z, others = self.gathered(rows, rows.z), self.others(rows.others, len(rows.z))
        return replace(rows, inputs=self._inputs, z=z, others=others)

    def gathered(self, rows: CallPairs, z: Tensor) -> Tensor:
        """The own step's numbers of z."""
        return z[..., self._numbers.to(z.device)]

    def scattered(self, rows: CallPairs, v: Tensor) -> Tensor:
        """The own step's numbers in place, zero for those of the step before."""
        whole = v.new_zeros(*v.shape[:-1], rows.z.shape[1])
        whole[..., self._numbers.to(v.device)] = v
        return whole

    def others(self, others: tuple[Tensor | None, ...], count: int) -> tuple[Tensor | None, ...]:
        """The other inputs of the own step."""
        return tuple(others[place] for place in self._places) if others else ()

    def fit(self, inputs: Arrays, outputs: Arrays, steps: int = 400) -> None:
        """Let the model learn from answers of the box that are there already, see `AutoTangent.fit`."""
        pairs = zip(self._is_own, as_tensors(inputs), strict=False)  # the model refuses another number
        self._auto.fit([array for is_own, array in pairs if is_own], outputs, steps)

    def __repr__(self) -> str:
        """The model, and what it is shown."""
        return f"{self.model!r} shown its own step"
