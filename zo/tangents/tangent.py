"""`Tangent`: a model of a box and its derivative; `Linearised`: its answer at rows; and the simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from blackbox import ArraySpec, BlackBoxFunction
from zo.batches import map_tensors, tensors
from zo.tangents.record.pairs import CallPairs, sizes


class Tangent(ABC):
    """A model of a box and of its derivative J(z).

    A tangent gives values and derivatives at rows (`at`). One that learns is shown rows (`see`), and learns
    from them (`learn`). The other methods have defaults. In each step four things happen: `expect` asks for
    predictions of the rows of the box's calls; `see` shows the rows, call by call; `learn` is called once;
    and `at_each` asks for the tangent at the calls.

    Attributes:
        learns: False for a tangent whose J(z) never changes.
        replayed: False for a tangent without replays, unless the number of replays is fixed.
        brought: whether its state is on the device of the rows, see `bring`.
        lags: how many calls back it is shown values, see `zo.tangents.record.before`.
    """

    lags: tuple[int, ...] = ()
    learns: bool = True
    replayed: bool = True
    brought: bool = False

    @abstractmethod
    def at(self, rows: CallPairs) -> Linearised:
        """Return the model at the rows of a call: values, J d, J^T v; see `Linearised`, `LinearMap`."""

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """`at` for several calls of one box, where one pass may serve all."""
        return [self.at(rows) for rows in calls]

    def see(self, rows: CallPairs) -> None:  # noqa: B027 - some have nothing to learn
        """Look at rows: inputs and outputs, `rows.z` and `rows.y`."""

    def learn(self, steps: int | None = None) -> None:  # noqa: B027 - the same
        """Learn from the rows seen; there may be nothing new.

        Args:
            steps: the number of learning steps before the first step of training; None in a step of
                training, for as many as it takes.
        """

    def improve(self) -> str | None:
        """Do more for no more rows, since trust is lost: in words what is done now, None if nothing."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Save everything learned; a resumed run goes on to the same bits."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - some have nothing to load
        """Go on where `state_dict` was taken."""

    def expect(self, rows: CallPairs) -> Tensor | None:
        """Predict the outputs at rows before seeing them, for trust: once for all rows that `see` is shown.

        Returns:
            The outputs, `(rows, size_out)`; None where it knows none.
        """
        return self.at(rows).values

    def check_box(self, box: BlackBoxFunction) -> None:  # noqa: B027 - most suit any box
        """Refuse a box that the tangent cannot stand for; asked once, before anything is run.

        Raises:
            ConfigurationError: it cannot.
        """

    def keep_within(self, most_bytes: int) -> None:  # noqa: B027 - some keep none
        """Take at most so many bytes for rows to learn from; it is too late where there are some already."""

    def __repr__(self) -> str:
        """The class's name; those with settings show them, for a resumed run is held to its own."""
        return f"{type(self).__name__}()"


class Linearised(ABC):
    """A tangent at the rows of one call: J at each row, and the outputs there if the tangent knows them.

    It answers as the tangent was when it was made, and is not asked after the tangent has learned again.

    Args:
        rows: the rows of the call.

    Attributes:
        rows: the argument of that name.
    """

    def __init__(self, rows: CallPairs) -> None:
        self.rows = rows

    @property
    def values(self) -> Tensor | None:
        """The outputs as the tangent has them, `(rows, size_out)`; None where it knows of changes alone."""
        return None

    def values_before_pull(self) -> Tensor | None:
        """`values`, where a pull is to follow: a model may keep the graph for it."""
        return self.values

    @abstractmethod
    def push(self, d: Tensor) -> Tensor:
        """J d at each row: `(rows, size_in)` to `(rows, size_out)`."""

    @abstractmethod
    def pull(self, v: Tensor) -> Tensor:
        """J^T v at each row, v the gradient of the outputs: `(rows, size_out)` to `(rows, size_in)`."""

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """Return the change of the outputs from these rows to other inputs, `(rows, size_out)`, with a graph.

        Of a model M that is M(z) - M(rows.z), and zero before it has learned; of a tangent that knows of
        changes alone, J (z - rows.z), with J at `rows.z`. Its gradient at `rows.z` is `pull`.

        Args:
            z: `(rows, size_in)`, the differentiable inputs of the same rows now.
            others: the other inputs now, as `CallPairs.others` has them.
        """
        return self.by_products(z)

    def by_products(self, z: Tensor) -> Tensor:
        """J (z - rows.z), `(rows, size_out)`: differentiable once, in both modes, by `pull` and `push`."""
        return _Linear.apply(z, self)


class LinearMap(Linearised):
    """J as two functions, and the outputs where they are known.

    Args:
        rows: the rows of the call.
        push: gives J d, see `Linearised.push`.
        pull: its adjoint, see `Linearised.pull`.
        values: the outputs, `(rows, size_out)`; None where changes alone are known.
    """

    def __init__(
        self,
        rows: CallPairs,
        push: Callable[[Tensor], Tensor],
        pull: Callable[[Tensor], Tensor],
        values: Tensor | None = None,
    ) -> None:
        super().__init__(rows)
        self._push, self._pull, self._values = push, pull, values

    @property
    def values(self) -> Tensor | None:
        """The outputs that the map was made with."""
        return self._values

    def push(self, d: Tensor) -> Tensor:
        """J d, by the function that was given."""
        return self._push(d)

    def pull(self, v: Tensor) -> Tensor:
        """J^T v, by the function that was given."""
        return self._pull(v)


class Unknown(Linearised):
    """J is zero, and no value is known: of a model that has not learned yet."""

    def push(self, d: Tensor) -> Tensor:
        """Zero."""
        return d.new_zeros(*d.shape[:-1], sum(sizes(self.rows.outputs)))

    def pull(self, v: Tensor) -> Tensor:
        """Zero."""
        return v.new_zeros(*v.shape[:-1], sum(sizes(self.rows.inputs)))

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """Zero, without a graph."""
        return z.new_zeros(len(z), sum(sizes(self.rows.outputs)))


class _Linear(Function):
    """`apply(z, at)`: J (z - rows.z), with the tangent's own adjoint."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, at: Linearised) -> Tensor:
        ctx.at = at
        return at.push(z - at.rows.z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.at.pull(cotangent), None

    @staticmethod
    def jvp(ctx: Any, d: Tensor, at: None) -> Tensor:
        return ctx.at.push(d)


class IdentityTangent(Tangent):
    """Each output follows the input of the same name and shape; without one it follows nothing.

    A box with one input and one output, of one shape, needs no common name. Costs nothing. For a solver that
    takes a small step it is a first guess.
    """

    learns = False

    def at(self, rows: CallPairs) -> Linearised:
        """Changes of the followed inputs, and gradients of the outputs at the inputs that they follow."""
        specs = rows.inputs, rows.outputs
        return LinearMap(rows, partial(followed, *specs), partial(followed_back, *specs))


class ZeroTangent(Tangent):
    """J(z) is zero: the gradient is cut at the box.

    It is a control: with replays it shows the worth of recorded answers alone, without any derivative.
    """

    learns = False

    def at(self, rows: CallPairs) -> Linearised:
        """Zero."""
        return Unknown(rows)


def followed(inputs: tuple[ArraySpec, ...], outputs: tuple[ArraySpec, ...], z: Tensor) -> Tensor:
    """Return each output as if it stayed equal to the input that it follows, or zero: `(rows, size_out)`.

    Args:
        inputs: the specs of the differentiable inputs.
        outputs: the specs of the differentiable outputs.
        z: numbers of the inputs, end to end, `(rows, size_in)`.
    """
    places = sources(inputs, outputs)
    if places == [0] and len(inputs) == 1:
        return z
    pieces = z.split(sizes(inputs), dim=-1)
    return torch.cat(
        [
            z.new_zeros(len(z), size) if source is None else pieces[source]
            for source, size in zip(places, sizes(outputs), strict=True)
        ],
        dim=-1,
    )


def followed_back(inputs: tuple[ArraySpec, ...], outputs: tuple[ArraySpec, ...], cotangent: Tensor) -> Tensor:
    """The transpose of `followed`: `(rows, size_out)` to `(rows, size_in)`."""
    places = sources(inputs, outputs)
    if places == [0] and len(inputs) == 1:
        return cotangent
    gradients = [cotangent.new_zeros(len(cotangent), size) for size in sizes(inputs)]
    for source, piece in zip(places, cotangent.split(sizes(outputs), dim=-1), strict=True):
        if source is not None:
            gradients[source] = gradients[source] + piece
    return torch.cat(gradients, dim=-1)


def bring(tangent: Tangent, device: torch.device) -> None:
    """Have what a tangent has learned where the rows are, before it is asked about the first of them.

    It may have been read from a file, to the CPU, or fitted to answers that lie there.
    """
    if not tangent.brought:
        state = tangent.state_dict()
        arrays = [
            tensor for tensor in tensors(state) if tensor.ndim
        ]  # a CPU's single number goes with any device
        if any(tensor.device != device for tensor in arrays):
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
