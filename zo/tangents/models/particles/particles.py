"""`PairTangent`: for particles whose neighbours change from row to row, a network that all pairs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count
from zo.errors import ConfigurationError
from zo.tangents.models.form import Form, rows_of
from zo.tangents.models.network import Learning, NetworkTangent
from zo.tangents.models.particles.particle_network import ParticleNetwork
from zo.tangents.models.rows import standard

PARTS = 256  # rows of which differences between neighbours are looked at, at most


class PairTangent(NetworkTangent):
    """The derivative of a network of messages between neighbours, fitted to the box's values.

    It is for a box whose differentiable inputs and outputs are arrays `(particles, ...)`, such as positions
    and velocities `(particles, 2)`. One input without a derivative lists the neighbours of a row: `(pairs,
    2)` numbers of particles from 0 on, each pair once, in any order. Rows with fewer pairs are filled up with
    -1. The neighbours may change from row to row; the list itself has no derivative, as in a simulator with a
    cutoff at which forces are zero.

    A particle's answer depends on its own inputs and on the sum of its neighbours' messages, which depend on
    the differences of their inputs. All particles, and all pairs, share the weights: a row teaches as much as
    it has pairs. In a periodic box the network does not know which particles are near across an end.

    Memory: window x (size_in + size of others + size_out) numbers, at most 512 MiB, and a graph of the rows
    of a step of learning, some 6 x rounds x pairs x width numbers a row. A step: steps_per_step x batch rows
    forward and backward through the network; a call's VJP its rows. The box runs no rows beyond the step's.

    Args:
        list_of: the place of the pairs among the inputs without a derivative, from 0 on; None: the only one
            of shape `(pairs, 2)`.
        width: the width of the hidden layers.
        rounds: the number of rounds of messages: how far a change is carried, in pairs. Two are better for a
            call of many substeps once some hundred rows are seen, and worse before.
        learning: how it learns; None for `LEARNING`, see `Learning`.
        seed: all draws depend on (seed, step of learning) alone.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box without such arrays.
    """

    LEARNING = Learning(batch=16, steps_per_step=16, learning_rate=5e-3)

    def __init__(
        self,
        list_of: int | None = None,
        *,
        width: int = 64,
        rounds: int = 1,
        learning: Learning | None = None,
        seed: int = 0,
    ) -> None:
        check_count("PairTangent", "width", width)
        check_count("PairTangent", "rounds", rounds)
        if list_of is not None and (not isinstance(list_of, int) or list_of < 0):
            raise ConfigurationError(
                f"PairTangent, list_of: expected None or a place from 0 on, got {list_of!r}. Count the "
                "inputs without a derivative."
            )
        self.list_of, self.width, self.rounds = list_of, width, rounds
        super().__init__(learning=learning, output_map=False, seed=seed)

    def groups(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """A number of a particle shares its unit with that of all others."""
        count, groups, first = self._particles(form), [], 0
        for shape in shapes:
            size, numbers = math.prod(shape), _numbers(shape, count)
            places = torch.arange(size)
            groups.append(first + (places % numbers if numbers else places))
            first += numbers or size
        return torch.cat(groups) if groups else None

    def plan(self, form: Form, rows: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        """Measure how much neighbours differ in each number of a particle."""
        z, listing = rows[0], self._listed(form)
        pairs = self._window.spread(rows_of(PARTS, form))[1][:, listing]
        count = self._particles(form)
        sizes = [math.prod(spec.shape) for spec in form.inputs]
        arrays = z.split(sizes, 1)
        nodes = torch.cat([array.reshape(len(z), count, -1) for array in arrays], 2)
        both = pairs.reshape(len(pairs), -1, 2).round().long()
        valid = ((both >= 0) & (both < count)).all(2) & (both[..., 0] != both[..., 1])
        row, pair = valid.nonzero(as_tuple=True)
        apart = nodes[row, both[row, pair, 0]] - nodes[row, both[row, pair, 1]]
        if not len(apart):
            return {"spread": [1.0] * nodes.shape[2]}
        spread, rounding = apart.square().mean(0).sqrt(), self._moments[0].rounding().to(apart)
        least = torch.cat([numbers.reshape(count, -1)[0] for numbers in rounding.split(sizes)])
        return {"spread": torch.where(spread > least, spread, 1.0).tolist()}

    def build(self, form: Form, plan: dict[str, Any]) -> ParticleNetwork:
        """The network of these arrays."""
        count, listing = self._particles(form), self._listed(form)
        shapes = [*(spec.shape for spec in form.inputs), *form.others]
        variables, sizes = len(form.inputs), [math.prod(shape) for shape in shapes]
        first = sum(sizes[:variables]) + listing.start
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        numbers = [
            0 if start == first and place >= variables else _numbers(shape, count)
            for place, (shape, start) in enumerate(zip(shapes, starts, strict=True))
        ]
        answered = [_numbers(spec.shape, count) for spec in form.outputs]
        where = first, sum(sizes[:variables]) + listing.stop
        spread = plan["spread"]
        return ParticleNetwork(
            numbers, sizes, variables, where, answered, count, spread, self.width, self.rounds
        )

    @property
    def whole_rows(self) -> bool:
        """False: learning has no passes written out here, but a graph, see `missed`."""
        return False

    def missed(self, generator: torch.Generator) -> Tensor:
        """Return the network's error on rows that are drawn."""
        assert isinstance(self._network, ParticleNetwork)
        z, others, y = self._window.draw(self.drawn(), generator)
        prediction = self._network.values(self._network.arranged(*self._standard(z, others)))
        return prediction - standard(y - self.carried(z), self._moments[3]).to(prediction)

    def _standard(self, z: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs in standard units, but for the pairs, which are whole numbers."""
        x, o = super()._standard(z, others)
        listing = self._listed(self._form)
        return x, torch.cat([o[:, : listing.start], others[:, listing].to(o), o[:, listing.stop :]], 1)

    def _particles(self, form: Form) -> int:
        """Return the number of particles.

        Raises:
            ConfigurationError: an input or an output has not one entry for each.
        """
        shapes = [spec.shape for spec in (*form.inputs, *form.outputs)]
        counts = {shape[:1] for shape in shapes}
        if len(counts) != 1 or not shapes[0]:
            raise ConfigurationError(
                f"{self!r}: expected differentiable inputs and outputs (particles, ...), as many particles "
                f"in each, got shapes {shapes}. Take zo.tangents.MLPTangent, or two boxes."
            )
        return shapes[0][0]

    def _listed(self, form: Form) -> slice:
        """Return the place of the pairs among the other inputs, end to end.

        Raises:
            ConfigurationError: none of them lists pairs, or several may.
        """
        candidates = [place for place, shape in enumerate(form.others) if len(shape) == 2 and shape[1] == 2]
        places = (
            candidates if self.list_of is None else [place for place in candidates if place == self.list_of]
        )
        if len(places) != 1:
            raise ConfigurationError(
                f"{self!r}: expected one input without a derivative that lists neighbours, (pairs, 2), got "
                f"shapes {list(form.others)}. Give its place among these as list_of=; if neighbours never "
                "change, say them in a blackbox.Mesh(edges=...) and take zo.tangents.GraphTangent."
            )
        sizes = [math.prod(shape) for shape in form.others]
        first = sum(sizes[: places[0]])
        return slice(first, first + sizes[places[0]])

    def __repr__(self) -> str:
        """The settings."""
        return f"PairTangent(list_of={self.list_of}, width={self.width}, rounds={self.rounds})"


def _numbers(shape: tuple[int, ...], particles: int) -> int:
    """The numbers that each particle has in such an array; 0 for one that does not lie on particles."""
    return math.prod(shape[1:]) if shape[:1] == (particles,) else 0
