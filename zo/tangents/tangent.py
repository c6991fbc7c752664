"""`Tangent`: a linear model of how a box's outputs follow its inputs; and the simplest, the identity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from blackbox import ArraySpec, BlackBoxFunction
from zo.batches import map_tensors, tensors
from zo.tangents.record.pairs import CallPairs, sizes

Response: TypeAlias = Callable[[Tensor, tuple[Tensor | None, ...]], Tensor]
"""Inputs z of a recorded call's rows now, and the other inputs -> by what the outputs have changed."""


class Tangent(ABC):
    """A model J(z) of a box's derivative. Tangents stack: each learns what its `prior` leaves.

    In each step `predict` (without probes `predict_values`) is asked for the calls of the box, then `see`,
    then `observe` and `linearise` once each, then `vjp` for the calls in reverse. Without probes the rows of
    several calls, one after another, are given to `predict_values` and `see` at once. The pairs of a call are
    given each time, so only what outlives the step is kept. One that has a `prior` hands on what it is given.

    Attributes:
        learns_from_values: whether it needs no changes to learn, only what goes in and comes out; then a
            step may do without probes.
        learns: False of one whose J(z) never changes.
        replayed: False of one with which nothing is replayed where the number of replays is not fixed.
        brought: whether what it has learned is where the rows are, see `bring`.
    """

    learns_from_values: bool = False
    learns: bool = True
    replayed: bool = True
    brought: bool = False

    @abstractmethod
    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """J d at `pairs.z`: `(probes, rows, size_in)` to `(probes, rows, size_out)`."""

    @abstractmethod
    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """J^T times the gradient of the outputs: `(rows, size_out)` to `(rows, size_in)`."""

    def predict(self, pairs: CallPairs) -> Tensor:
        """Responses to `pairs.d` as the model expects them before it has learned from them, for the trust."""
        return self.apply(pairs, pairs.d)

    def predict_values(self, pairs: CallPairs) -> Tensor | None:
        """The outputs at `pairs.z`, `(rows, size_out)`, before it has seen them: the trust without probes.

        None of a tangent that knows of changes alone; one with a prior has the prior's.
        """
        prior = self._prior()
        return None if prior is None else prior.predict_values(pairs)

    def response(self, pairs: CallPairs, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """How the outputs change from `pairs.z` to another input: `(rows, size_out)`, with a graph of z.

        Of a model M that is M(z) - M(pairs.z), and zero before it has learned; of a tangent that knows
        changes alone, J (z - pairs.z) at `pairs.z`. Its gradient at `pairs.z` is `vjp`.

        Args:
            pairs: the pairs of a call that was recorded.
            z: `(rows, size_in)`, the differentiable inputs of the same rows now.
            others: the other inputs now, as `CallPairs.others` has them.
        """
        return _Linear.apply(z, self, pairs)

    def responses(self, calls: Sequence[CallPairs]) -> list[Response]:
        """`response` for several calls of one box, where M may be asked at once for all that was recorded.

        Args:
            calls: the calls that were recorded, with equally many probes.

        Returns:
            Functions of z and others, in the order of the calls.
        """
        return [partial(self.response, pairs) for pairs in calls]

    def check_box(self, box: BlackBoxFunction) -> None:
        """Refuse a box that the tangent cannot stand for; asked once, before anything is run.

        Raises:
            ConfigurationError: it cannot.
        """
        prior = self._prior()
        if prior is not None:
            prior.check_box(box)

    def see(self, pairs: CallPairs) -> None:
        """Look at the inputs and outputs of calls, `pairs.z` and `pairs.y`, in the order of the calls."""
        prior = self._prior()
        if prior is not None:
            prior.see(pairs)

    def learn(self, steps: int | None = None) -> None:
        """Learn in steps from what was seen before the first step, for one that does not as it sees."""
        prior = self._prior()
        if prior is not None:
            prior.learn(steps)

    def observe(self, pairs: CallPairs) -> None:  # noqa: B027 - some have nothing to learn
        """Learn from the pairs of all calls of a step, listed (see `CallPairs.listed`); there may be none."""

    def linearise(self, calls: Sequence[CallPairs]) -> None:
        """Prepare for `vjp` and `apply` at the calls of a step, of which each may be asked for, or none."""
        prior = self._prior()
        if prior is not None:
            prior.linearise(calls)

    def keep_within(self, most_bytes: int) -> None:
        """Take at most so many bytes for rows to learn from; it is too late where there are some already."""
        prior = self._prior()
        if prior is not None:
            prior.keep_within(most_bytes)

    def improve(self) -> str | None:
        """Do more for no more rows, since trust is lost: in words what is done now, None if nothing."""
        prior = self._prior()
        return None if prior is None else prior.improve()

    def state_dict(self) -> dict[str, Any]:
        """What was learned; a resumed run goes on to the same bits."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - some have nothing to load
        """Go on where `state_dict` was taken."""

    def __repr__(self) -> str:
        """The class's name; those with settings show them, for a resumed run is held to its own."""
        return f"{type(self).__name__}()"

    def parts(self) -> Iterator[Tangent]:
        """The tangent, its prior, that one's, and so on."""
        yield self
        prior = self._prior()
        if prior is not None:
            yield from prior.parts()

    def _prior(self) -> Tangent | None:
        prior = getattr(self, "prior", None)  # an attribute of those that have one, never None
        return prior if isinstance(prior, Tangent) else None


class _Linear(Function):
    """`apply(z, tangent, pairs)`: J (z - pairs.z), with the tangent's own adjoint."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tangent: Tangent, pairs: CallPairs) -> Tensor:
        ctx.tangent, ctx.pairs = tangent, pairs
        return tangent.apply(pairs, (z - pairs.z)[None])[0]

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return ctx.tangent.vjp(ctx.pairs, cotangent), None, None


class IdentityTangent(Tangent):
    """Each output follows the input of the same name and shape; without one it follows nothing.

    A box with one input and one output, of one shape, needs no common name. A number that answers the
    probes with less than a tenth of what it was changed by is known not to follow, as where inputs and
    outputs are in other units or a wall stands. Costs nothing. For a solver that takes a small step it is a
    first guess; for all else what learned tangents start from.
    """

    learns = False

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """The changes of the followed inputs."""
        pieces, shape = d.split(sizes(pairs.inputs), dim=-1), d.shape[:-1]
        outputs = zip(sources(pairs.inputs, pairs.outputs), sizes(pairs.outputs), strict=True)
        followed = [
            d.new_zeros(*shape, size) if source is None else pieces[source] for source, size in outputs
        ]
        return torch.cat(followed, -1) * _follows(pairs)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """The gradients of the outputs, at the inputs that they follow."""
        pieces = (cotangent * _follows(pairs)).split(sizes(pairs.outputs), dim=-1)
        gradients = [cotangent.new_zeros(*cotangent.shape[:-1], size) for size in sizes(pairs.inputs)]
        for source, piece in zip(sources(pairs.inputs, pairs.outputs), pieces, strict=True):
            if source is not None:
                gradients[source] = gradients[source] + piece
        return torch.cat(gradients, dim=-1)


class ZeroTangent(Tangent):
    """J(z) is zero: the gradient is cut at the box.

    A control: with replays, what recorded answers alone are worth, without any derivative of the box.
    """

    learns = False

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """Zero."""
        return d.new_zeros(*d.shape[:-1], sum(sizes(pairs.outputs)))

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """Zero."""
        return cotangent.new_zeros(*cotangent.shape[:-1], sum(sizes(pairs.inputs)))


def _follows(pairs: CallPairs) -> Tensor:
    """1 for outputs that may follow their input, 0 for those that are known not to: `(size_out,)`."""
    scales = pairs.d_scale.split(sizes(pairs.inputs))
    followed = [
        pairs.d_scale.new_zeros(size) if source is None else scales[source]
        for source, size in zip(sources(pairs.inputs, pairs.outputs), sizes(pairs.outputs), strict=True)
    ]
    return (pairs.response_scale >= 0.1 * torch.cat(followed)).to(pairs.z.dtype)


def bring(tangent: Tangent, device: torch.device) -> None:
    """Have what a tangent has learned where the rows are, before it is asked about the first of them.

    It may have been read from a file, to the CPU, or fitted to answers that lie there.
    """
    if not tangent.brought:
        state = tangent.state_dict()
        moving = [
            tensor for tensor in tensors(state) if tensor.ndim
        ]  # a CPU's single number goes with any device
        if any(tensor.device != device for tensor in moving):
            tangent.load_state_dict(
                map_tensors(lambda tensor: tensor.to(device) if tensor.ndim else tensor, state)
            )
        tangent.brought = True


def sources(inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec]) -> list[int | None]:
    """The place of the input that each output follows: the one of its name and shape, or the only one."""
    alone = len(inputs) == len(outputs) == 1
    return [
        next(
            (
                place
                for place, candidate in enumerate(inputs)
                if candidate.shape == spec.shape and (alone or candidate.name == spec.name)
            ),
            None,
        )
        for spec in outputs
    ]
