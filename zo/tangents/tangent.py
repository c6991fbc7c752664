"""`Tangent`: a model of how a box's outputs follow its inputs; and the simplest, the identity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.batches import map_tensors, tensors
from zo.errors import ConfigurationError
from zo.tangents.linearised import Linearised, LinearMap, Unknown
from zo.tangents.record.pairs import CallPairs, sizes

BEFORE = ("apply", "vjp", "predict_values", "observe", "linearise", "response", "responses")  # in 0.3


class Tangent(ABC):
    """A model of a box and of its derivative J(z). Tangents stack: each learns what its `prior` leaves.

    A tangent says what it knows at some rows (`at`); one that learns is shown rows (`see`), and learns from
    what it was shown (`learn`). Nothing else must be there: the other methods have defaults, which hand on to
    a `prior` where there is one. In each step a tangent is asked what it expects of the rows of the box's
    calls (`expect`), then `see` shows them, then it learns, once, and says what it knows there (`at_each`).
    Without probes the rows of several calls, one after another, are shown at once.

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
    _asked_by_call: bool = False  # of `CallTangent`, which has the methods of 0.3

    def __init_subclass__(cls, **settings: Any) -> None:
        """Refuse a class that is written for 0.3, whose methods nobody would call."""
        super().__init_subclass__(**settings)
        before = [name for name in BEFORE if name in vars(cls)]
        if before and not cls._asked_by_call:
            raise ConfigurationError(
                f"{cls.__name__}: expected a tangent with at(rows), which gives values, J d and J^T v there, "
                f"got {', '.join(before)} as in 0.3. See docs/howto/move_a_tangent.md, or put "
                "zo.tangents.CallTangent in the place of zo.tangents.Tangent."
            )

    @abstractmethod
    def at(self, rows: CallPairs) -> Linearised:
        """What it says at the rows of a call: values, J d, J^T v; see `Linearised`, `LinearMap`."""

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """`at` for several calls of one box, where one pass may serve all.

        Args:
            calls: the calls, with equally many probes.
        """
        return [self.at(rows) for rows in calls]

    def see(self, rows: CallPairs) -> None:
        """Look at rows: inputs and outputs, `rows.z` and `rows.y`, and with probes how outputs responded."""
        prior = self._prior()
        if prior is not None:
            prior.see(rows)

    def learn(self, steps: int | None = None) -> None:
        """Learn from what was seen; there may be nothing new.

        Args:
            steps: of learning, before the first step of training; None in a step of training, as many as it
                takes.
        """
        prior = self._prior()
        if prior is not None:
            prior.learn(steps)

    def improve(self) -> str | None:
        """Do more for no more rows, since trust is lost: in words what is done now, None if nothing."""
        prior = self._prior()
        return None if prior is None else prior.improve()

    def state_dict(self) -> dict[str, Any]:
        """What was learned; a resumed run goes on to the same bits."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - some have nothing to load
        """Go on where `state_dict` was taken."""

    def expect(self, rows: CallPairs) -> Tensor | None:
        """What rows will show, before it has seen them: for the trust, once for all that `see` is shown.

        Returns:
            The responses to `rows.d`, `(probes, rows, size_out)`; without probes the outputs, `(rows,
            size_out)`, or None where it knows none.
        """
        at = self.at(rows)
        return at.push(rows.d) if len(rows.d) else at.values

    def check_box(self, box: BlackBoxFunction) -> None:
        """Refuse a box that the tangent cannot stand for; asked once, before anything is run.

        Raises:
            ConfigurationError: it cannot.
        """
        prior = self._prior()
        if prior is not None:
            prior.check_box(box)

    def keep_within(self, most_bytes: int) -> None:
        """Take at most so many bytes for rows to learn from; it is too late where there are some already."""
        prior = self._prior()
        if prior is not None:
            prior.keep_within(most_bytes)

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


class IdentityTangent(Tangent):
    """Each output follows the input of the same name and shape; without one it follows nothing.

    A box with one input and one output, of one shape, needs no common name. A number that answers the
    probes with less than a tenth of what it was changed by is known not to follow, as where inputs and
    outputs are in other units or a wall stands. Costs nothing. For a solver that takes a small step it is a
    first guess; for all else what learned tangents start from.
    """

    learns = False

    def at(self, rows: CallPairs) -> Linearised:
        """Changes of the followed inputs, and gradients of the outputs at the inputs that they follow."""
        return LinearMap(rows, partial(_pushed, rows), partial(_pulled, rows))


class ZeroTangent(Tangent):
    """J(z) is zero: the gradient is cut at the box.

    A control: with replays, what recorded answers alone are worth, without any derivative of the box.
    """

    learns = False

    def at(self, rows: CallPairs) -> Linearised:
        """Zero."""
        return Unknown(rows)


def _pushed(rows: CallPairs, d: Tensor) -> Tensor:
    """The changes of the followed inputs."""
    pieces, shape = d.split(sizes(rows.inputs), dim=-1), d.shape[:-1]
    outputs = zip(sources(rows.inputs, rows.outputs), sizes(rows.outputs), strict=True)
    followed = [d.new_zeros(*shape, size) if source is None else pieces[source] for source, size in outputs]
    return torch.cat(followed, -1) * _follows(rows)


def _pulled(rows: CallPairs, v: Tensor) -> Tensor:
    """The gradients of the outputs, at the inputs that they follow."""
    pieces = (v * _follows(rows)).split(sizes(rows.outputs), dim=-1)
    gradients = [v.new_zeros(*v.shape[:-1], size) for size in sizes(rows.inputs)]
    for source, piece in zip(sources(rows.inputs, rows.outputs), pieces, strict=True):
        if source is not None:
            gradients[source] = gradients[source] + piece
    return torch.cat(gradients, dim=-1)


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
