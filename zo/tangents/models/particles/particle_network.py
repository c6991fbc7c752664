"""`ParticleNetwork`: messages between particles that each row lists as neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo.tangents.models.model import pushed_forward
from zo.tangents.models.passes import Passes, Slopes, Tape


class ParticleNetwork(Passes):
    """A network from standardised flat inputs and others to the outputs' change, standardised, by autograd.

    In each round a particle's hidden numbers take the sum of its neighbours' messages. A message depends on
    the differences of both particles' inputs and on the hidden numbers of both. All particles and all pairs
    share the weights, so the order in which they are listed makes no difference.

    Args:
        arrays: how many numbers a particle has in each array of a row, end to end; 0 for an array whose
            numbers are given to all particles.
        sizes: the sizes of these arrays.
        moving: how many of the arrays, the first, have their differences taken.
        list_at: the places among a row's numbers at which the pairs begin and end.
        answered: how many numbers a particle has in each output.
        particles: the number of particles in a row.
        spread: the spread of the differences between neighbours, of each number of a particle.
        width: the width of the hidden layers.
        rounds: the number of rounds of messages.
    """

    def __init__(
        self,
        arrays: Sequence[int],
        sizes: Sequence[int],
        moving: int,
        list_at: tuple[int, int],
        answered: Sequence[int],
        particles: int,
        spread: Sequence[float],
        width: int,
        rounds: int,
    ) -> None:
        super().__init__()
        self.arrays, self.sizes, self.list_at = tuple(arrays), tuple(sizes), list_at
        self.answered, self.particles, self.rounds = tuple(answered), particles, rounds
        self.moving = sum(self.arrays[:moving])
        apart = [
            size for count, size, first in zip(arrays, sizes, self._firsts(), strict=True)
            if not count and first != list_at[0]
        ]  # fmt: skip
        size_in, out = sum(self.arrays) + sum(apart), sum(self.answered)
        self.register_buffer("spread", torch.tensor(list(spread)), persistent=False)
        self.begin = nn.Linear(size_in, width)
        self.differences = nn.ModuleList(nn.Linear(self.moving, width) for _ in range(rounds))
        self.ends = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(rounds))
        self.says = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.hears = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(rounds))
        self.last, self.linear = nn.Linear(width, out), nn.Linear(size_in, out, bias=False)
        for layer in (self.last, self.linear, *self.ends):  # at first differences alone count in a pair
            for weight in layer.parameters():
                nn.init.zeros_(weight)

    def values(self, x: Tensor) -> Tensor:
        """`(rows, size_in + size of others)` to `(rows, size_out)`, with a graph."""
        rows, count = len(x), self.particles
        of_particles, common, pairs = [], [], x[:, :0]
        for numbers, array, first in zip(self.arrays, x.split(self.sizes, 1), self._firsts(), strict=True):
            if numbers:
                of_particles.append(array.reshape(rows, count, numbers))
            elif first == self.list_at[0]:
                pairs = array
            else:
                common.append(array[:, None].expand(-1, count, -1))
        nodes = torch.cat([*of_particles, *common], 2).flatten(0, 1)
        there, here, valid = _ends(pairs.detach().reshape(rows, -1, 2), count)
        difference = (nodes[there] - nodes[here])[:, : self.moving] / self.get_buffer("spread").to(x)
        layer = self.begin(nodes)
        layers = zip(self.differences, self.ends, self.says, self.hears, strict=True)
        for apart, ends, says, hears in layers:
            of_here, of_there = ends(functional.silu(layer)).chunk(2, 1)
            messages = functional.silu(apart(difference) + of_here[here] + of_there[there])
            messages = functional.silu(says(messages)) * valid
            sums = torch.zeros_like(layer).index_add(0, here, messages)
            layer = layer + hears(torch.cat([functional.silu(layer), sums], 1))
        change = (self.last(functional.silu(layer)) + self.linear(nodes)).view(rows, count, -1)
        return torch.cat([output.flatten(1) for output in change.split(self.answered, 2)], 1)

    def _firsts(self) -> list[int]:
        return [sum(self.sizes[:place]) for place in range(len(self.sizes))]

    # Passes

    def arranged(self, z: Tensor, others: Tensor) -> Tensor:
        """Inputs and others end to end."""
        return torch.cat([z, others], dim=1)

    def passed(self, x: Tensor) -> tuple[Tensor, Tape]:
        """Outputs with a graph, for the way back."""
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            outputs = self.values(inputs)
        return outputs.detach(), (inputs, outputs)

    def back(self, tape: Tape, cotangent: Tensor, slopes: Slopes | None = None) -> Tensor | None:
        """The gradient by the inputs; weights are learned on a graph."""
        assert slopes is None
        inputs, outputs = tape
        return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True)[0]

    def pushed(self, tape: Tape, change: Tensor) -> Tensor:
        """Return the change of outputs, as the derivative of the backward pass."""
        return pushed_forward(self.values, tape[0], change)

    def apart(self, tape: Tape, counts: Sequence[int]) -> list[Tape]:
        """A pass for each call."""
        return [self.passed(part)[1] for part in tape[0].detach().split(counts)]

    def answers(self, y: Tensor) -> Tensor:
        """The outputs as they are."""
        return y

    def arranged_cotangent(self, cotangent: Tensor) -> Tensor:
        """The outputs' gradient as it is."""
        return cotangent

    def cotangent_rows(self, cotangent: Tensor) -> Tensor:
        """The inputs' gradient as it is."""
        return cotangent


def _ends(pairs: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return senders and receivers, `(rows * 2 * pairs,)` of all particles of all rows, and 1 for real pairs.

    Each pair is one in both directions. One with a number that is no particle's, or twice the same, is none.
    """
    both = torch.cat([pairs, pairs.flip(2)], 1).round().long()
    valid = ((both >= 0) & (both < count)).all(2) & (both[..., 0] != both[..., 1])
    first = count * torch.arange(len(both), device=both.device)[:, None, None]
    places = (both.clamp(0, count - 1) + first).flatten(0, 1)
    return places[:, 0], places[:, 1], valid.to(pairs.dtype).flatten()[:, None]
