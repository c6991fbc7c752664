"""Direction of tangents of particles whose neighbours change from row to row, beside autograd.

    python -m benchmarks particles --size ci       16 rows, one tangent; written nowhere
    python -m benchmarks particles --size small    the table

The box moves 24 soft spheres in a bowl for four substeps: spheres that its list of neighbours names push each
other off and damp each other's velocity, up to a cutoff. Rows are calls of trajectories, each with the list
of the pairs that are near then, some 22. A tangent learns from the values of 16 rows at a time, as a step of
training of four rows and four calls has them. Then its VJP at 16 rows of other trajectories is compared with
autograd's through the box, for white cotangents: the cosine, and the cosine of what is left where the
cotangent itself, which is the identity's VJP, is taken away from both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import zo
from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents import AutoTangent, CallPairs
from zo.tangents.pairs import all_listed

COUNT, MOST, CUTOFF, SUBSTEPS, TIME = 24, 80, 1.0, 4, 0.05
ROWS, CALLS = 4, 4
STEPS = (1, 5, 20)  # after which it is asked
SEEDS = (0, 1)
TANGENTS: dict[str, Callable[[], zo.tangents.Tangent]] = {
    "pairs": zo.PairTangent,
    "pairs, two rounds": lambda: zo.PairTangent(rounds=2),
    "default": lambda: AutoTangent(Spheres()),
    "identity": zo.IdentityTangent,
}
HEAD = """Cosine of the VJP with autograd's, white cotangents, and in brackets of what is left without the
identity's; two seeds.

| tangent | rows |  |  |
| --- | --- | --- | --- |
"""


class Spheres(BlackBoxFunction):
    """Positions, velocities and a list of neighbours, -1 where it ends; the same a little later."""

    arrays = "torch"
    outputs = (ArraySpec("positions", (COUNT, 2)), ArraySpec("velocities", (COUNT, 2)))
    inputs = (*outputs, ArraySpec("neighbours", (MOST, 2), dtype="int64", differentiable=False))

    def evaluate_rows(self, positions: Tensor, velocities: Tensor, neighbours: Tensor) -> tuple[Tensor, ...]:
        """All rows."""
        with torch.no_grad():
            return self.advance(positions, velocities, neighbours)

    @staticmethod
    def advance(x: Tensor, v: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """What a call does, differentiable by the first two."""
        both = torch.cat([pairs, pairs.flip(2)], 1)
        listed = (both[..., :1] >= 0).to(x)
        here, there = (both.clamp(min=0)[..., end, None].expand(-1, -1, 2) for end in (0, 1))
        for _ in range(SUBSTEPS):
            apart, faster = (each.gather(1, there) - each.gather(1, here) for each in (x, v))
            distance = (apart.square().sum(2, keepdim=True) + 1e-9).sqrt()
            near = (1 - distance / CUTOFF).clamp(min=0) * listed
            force = 4 * near**2 * faster - 8 * near * apart / distance
            v = v + TIME * (torch.zeros_like(v).scatter_add(1, here, force) - 0.3 * x)
            x = x + TIME * v
        return x, v

    @staticmethod
    def neighbours(x: Tensor) -> Tensor:
        """All pairs nearer than the cutoff: `(rows, MOST, 2)`."""
        found = torch.full((len(x), MOST, 2), -1)
        for row, distances in enumerate(torch.cdist(x, x)):
            near = torch.triu(distances < CUTOFF, 1).nonzero()[:MOST]
            found[row, : len(near)] = near
        return found


def calls(seed: int) -> CallPairs:
    """What the calls of a batch show."""
    generator = torch.Generator().manual_seed(seed)
    x, v = (size * torch.randn(ROWS, COUNT, 2, generator=generator) for size in (1.4, 0.7))
    given, answers = [], []
    for _ in range(CALLS):
        pairs = Spheres.neighbours(x)
        given.append((x, v, pairs))
        x, v = Spheres.advance(x, v, pairs)
        answers.append(torch.cat([x.flatten(1), v.flatten(1)], 1))
    x, v, pairs = map(torch.cat, zip(*given, strict=True))
    z, y = torch.cat([x.flatten(1), v.flatten(1)], 1), torch.cat(answers)
    none = z.new_zeros(0, *z.shape)
    valid = torch.zeros(0, len(z), dtype=torch.bool)
    box = Spheres
    return CallPairs(box.inputs[:2], box.outputs, z, none, none, valid, y, others=(None, None, pairs))


def exact(pairs: CallPairs, v: Tensor) -> Tensor:
    """Autograd's VJP."""
    x, u = (each.reshape(-1, COUNT, 2).requires_grad_() for each in pairs.z.chunk(2, 1))
    listed = pairs.others[2]
    assert listed is not None
    found = torch.cat([each.flatten(1) for each in Spheres.advance(x, u, listed)], 1)
    return torch.cat([each.flatten(1) for each in torch.autograd.grad(found, (x, u), v)], 1)


def measured(name: str, seed: int, steps: Sequence[int] = STEPS) -> list[list[float]]:
    """Both cosines after so many steps."""
    tangent, asked = TANGENTS[name](), calls(10_000 + seed)
    v = torch.randn(asked.y.shape, generator=torch.Generator().manual_seed(seed))
    wanted, found = exact(asked, v), []
    for step in range(max(steps)):
        seen = calls(1000 * seed + step)
        tangent.see(seen)
        tangent.observe(all_listed([seen]))
        if step + 1 in steps:
            own = tangent.vjp(asked, v)
            both = (own, wanted), (own - v, wanted - v)
            found.append([float(cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in both])
    return found


def main(words: Sequence[str]) -> None:
    """The command line."""
    asked = protocol.options("particles", __doc__).parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        print(measured("pairs", 0, (1,)))
        return
    found: dict[str, Any] = {name: [measured(name, seed) for seed in SEEDS] for name in TANGENTS}
    to = protocol.path("particles", asked.size)
    protocol.write("particles", words, {"rows": [ROWS * CALLS * n for n in STEPS], "tangents": found}, to)
    print(table(found))


def table(found: dict[str, list[list[list[float]]]]) -> str:
    """In Markdown."""
    lines = [HEAD.replace("| rows |  |  |", "".join(f"| {ROWS * CALLS * n} rows " for n in STEPS) + "|")]
    for name, seeds in found.items():
        cells = [", ".join(f"{a:.2f} ({b:.2f})" for a, b in each) for each in zip(*seeds, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    return "".join(lines)
