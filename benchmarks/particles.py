"""Tangents of particles whose neighbours change from row to row, beside autograd: directions, and a training.

    python -m benchmarks particles --size ci       16 rows, two steps of training; written nowhere
    python -m benchmarks particles --size small    both tables

The box moves 24 soft spheres in a bowl for four substeps: spheres that its list of neighbours names push each
other off and damp each other's velocity, up to a cutoff. Rows are calls of trajectories, each with the list
of the pairs that are near then, some 22. A tangent learns from the values of 16 rows at a time, as a step of
training of four rows and four calls has them. Then its VJP at 16 rows of other trajectories is compared with
autograd's through the box, for white cotangents: the cosine, and the cosine of what is left where the
cotangent itself, which is the identity's VJP, is taken away from both.

In training a network that all spheres share steers: it sees a sphere's place, velocity and target, and adds
to its velocity before each of six calls, so that spheres reach places opposite to where they began, past each
other. The loss is the square of the distance to them, the mean over calls, and a little for effort. Gradients
are by autograd through the box, by `zo.TangentGradient` with one of the tangents and no other setting, and
without any gradient of the box. In a second training each sphere has two unknowns, a push that is the same in
all calls, and all starts lie beside one. Errors are the loss on 32 starts that were not trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import zo
from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents import AutoTangent, CallPairs

COUNT, MOST, CUTOFF, SUBSTEPS, TIME = 24, 80, 1.0, 4, 0.05
ROWS, CALLS = 4, 4
STEPS = (1, 5, 20)  # after which it is asked
SEEDS = (0, 1)
TANGENTS: dict[str, Callable[[], zo.tangents.Tangent]] = {
    "pairs": zo.tangents.PairTangent,
    "pairs, two rounds": lambda: zo.tangents.PairTangent(rounds=2),
    "default": lambda: AutoTangent(Spheres()),
    "identity": zo.tangents.IdentityTangent,
}
FEW = "default, few rows"  # at most 1.1 times those of the steps
LEARNED = ("exact", "pairs", "default", FEW, "identity", "none")  # gradients of a training
LOOP, BATCH, TRAINED, RATE, EFFORT, UNSEEN = 6, 4, 150, 1e-2, 0.02, 32
FOOT = """
Loss after {steps} steps of Adam on starts that were not trained on, over that with autograd through the box,
and further rows of the box over those of the steps; two seeds each. A star: a warning came in the run.

| gradient | a shared network |  | unknowns of each sphere |  |
| --- | --- | --- | --- | --- |
"""
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
            apart, faster = (field.gather(1, there) - field.gather(1, here) for field in (x, v))
            distance = (apart.square().sum(2, keepdim=True) + 1e-9).sqrt()
            near = (1 - distance / CUTOFF).clamp(min=0) * listed
            force = 4 * near**2 * faster - 8 * near * apart / distance
            v = v + TIME * (torch.zeros_like(v).scatter_add(1, here, force) - 0.3 * x)
            x = x + TIME * v
        return x, v

    @staticmethod
    def neighbours(x: Tensor) -> Tensor:
        """All pairs nearer than the cutoff: `(rows, MOST, 2)`."""
        listed = torch.full((len(x), MOST, 2), -1)
        for row, distances in enumerate(torch.cdist(x, x)):
            near = torch.triu(distances < CUTOFF, 1).nonzero()[:MOST]
            listed[row, : len(near)] = near
        return listed


def calls(seed: int) -> CallPairs:
    """What the calls of a batch show."""
    generator = torch.Generator().manual_seed(seed)
    x, v = (size * torch.randn(ROWS, COUNT, 2, generator=generator) for size in (1.4, 0.7))
    inputs, answers = [], []
    for _ in range(CALLS):
        pairs = Spheres.neighbours(x)
        inputs.append((x, v, pairs))
        x, v = Spheres.advance(x, v, pairs)
        answers.append(torch.cat([x.flatten(1), v.flatten(1)], 1))
    x, v, pairs = map(torch.cat, zip(*inputs, strict=True))
    z, y = torch.cat([x.flatten(1), v.flatten(1)], 1), torch.cat(answers)
    box = Spheres
    return CallPairs(box.inputs[:2], box.outputs, z, y, others=(None, None, pairs))


def exact(pairs: CallPairs, v: Tensor) -> Tensor:
    """Autograd's VJP."""
    x, u = (half.reshape(-1, COUNT, 2).requires_grad_() for half in pairs.z.chunk(2, 1))
    listed = pairs.others[2]
    assert listed is not None
    outputs = torch.cat([field.flatten(1) for field in Spheres.advance(x, u, listed)], 1)
    return torch.cat([slope.flatten(1) for slope in torch.autograd.grad(outputs, (x, u), v)], 1)


def measured(name: str, seed: int, steps: Sequence[int] = STEPS) -> list[list[float]]:
    """Both cosines after so many steps."""
    tangent, asked = TANGENTS[name](), calls(10_000 + seed)
    v = torch.randn(asked.y.shape, generator=torch.Generator().manual_seed(seed))
    wanted, cosines = exact(asked, v), []
    for step in range(max(steps)):
        seen = calls(1000 * seed + step)
        tangent.see(seen)
        tangent.learn()
        if step + 1 in steps:
            vjp = tangent.at(asked).pull(v)
            both = (vjp, wanted), (vjp - v, wanted - v)
            cosines.append([float(cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in both])
    return cosines


class Steering(nn.Module):
    """What is added to velocities: of `(rows, spheres, 2)` places, velocities and targets."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: Tensor, v: Tensor, target: Tensor) -> Tensor:
        """The same for all spheres."""
        return self.layers(torch.cat([x, v, target], 2))


class Pushes(nn.Module):
    """What is added to the velocity of each sphere, the same in all calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.pushes = nn.Parameter(torch.zeros(COUNT, 2))

    def forward(self, x: Tensor, v: Tensor, target: Tensor) -> Tensor:
        """Of each row."""
        del v, target
        return self.pushes.expand_as(x)


def steered(
    network: nn.Module, batch: tuple[Tensor, Tensor], call: Callable[..., tuple[Tensor, ...]]
) -> Tensor:
    """The loss of each row."""
    x, v = batch
    target, loss = -x, x.new_zeros(len(x))
    for _ in range(LOOP):
        push = network(x, v, target)
        x, v = call(x, v + push, Spheres.neighbours(x.detach()))
        loss = loss + ((x - target).square() + EFFORT * push.square()).flatten(1).mean(1)
    return loss / LOOP


def starts(rows: int, generator: torch.Generator, near: int | None = None) -> tuple[Tensor, Tensor]:
    """Places and velocities; or those of one start, by its seed, and a little beside it."""
    x, v = (size * torch.randn(rows, COUNT, 2, generator=generator) for size in (1.4, 0.7))
    if near is not None:
        one = torch.Generator().manual_seed(near)
        x, v = (a + 0.1 * b for a, b in zip(starts(1, one), (x, v), strict=True))
    return x, v


def trained(name: str, seed: int, steps: int = TRAINED, by_particle: bool = False) -> dict[str, Any]:
    """The loss before and after training by one of the gradients, rows beside the steps' own, warnings.

    Args:
        name: of the gradient.
        seed: of all draws.
        steps: of Adam.
        by_particle: whether each sphere has unknowns of its own; else a network is shared.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Pushes() if by_particle else Steering()
    near = 500 + seed if by_particle else None
    box, unseen = Spheres(), starts(UNSEEN, torch.Generator().manual_seed(999), near)
    tangents = TANGENTS | {"none": zo.tangents.ZeroTangent} | dict.fromkeys(("default", FEW), lambda: None)
    gradient = None
    if name != "exact":
        gradient = zo.TangentGradient(
            network,
            lambda net, batch: steered(net, batch, box),
            boxes=[box],
            tangent=tangents[name](),
            seed=seed,
            trust_policy=zo.tangents.TrustPolicy(early=1) if name == FEW else zo.tangents.TrustPolicy(),
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE * (5 if by_particle else 1))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        losses: dict[str, Any] = {"before": float(steered(network, unseen, Spheres.advance).mean())}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for _ in range(steps):
            batch = starts(BATCH, generator, near)
            optimizer.zero_grad()
            if gradient is None:
                steered(network, batch, Spheres.advance).mean().backward()
            else:
                gradient.backward(batch)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        losses["after"] = float(steered(network, unseen, Spheres.advance).mean())
    rows = 0 if gradient is None else gradient.counts.rows
    return losses | {"rows beside": max(0, rows / (steps * BATCH * LOOP) - 1), "warnings": len(caught)}


def main(words: Sequence[str]) -> None:
    """The command line."""
    asked = protocol.options("particles", __doc__).parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        print(measured("pairs", 0, (1,)), trained("pairs", 0, 2))
        return
    cosines: dict[str, Any] = {name: [measured(name, seed) for seed in SEEDS] for name in TANGENTS}
    training: dict[str, Any] = {
        kind: {name: [trained(name, seed, by_particle=kind == "each") for seed in SEEDS] for name in LEARNED}
        for kind in ("shared", "each")
    }
    to = protocol.path("particles", asked.size)
    rows = [ROWS * CALLS * n for n in STEPS]
    protocol.write("particles", words, {"rows": rows, "tangents": cosines, "training": training}, to)
    print(table(cosines, training))


def table(
    cosines: dict[str, list[list[list[float]]]], training: dict[str, dict[str, list[dict[str, Any]]]]
) -> str:
    """In Markdown."""
    lines = [HEAD.replace("| rows |  |  |", "".join(f"| {ROWS * CALLS * n} rows " for n in STEPS) + "|")]
    for name, seeds in cosines.items():
        cells = [", ".join(f"{a:.2f} ({b:.2f})" for a, b in pairs) for pairs in zip(*seeds, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    lines.append(FOOT.format(steps=TRAINED))
    for name in LEARNED:
        cells = []
        for kinds in training.values():
            best = [exact["after"] for exact in kinds["exact"]]
            cells += [
                f"{run['after'] / least:.3g}{'*' * bool(run['warnings'])}, {run['rows beside']:.2f}"
                for run, least in zip(kinds[name], best, strict=True)
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |\n")
    return "".join(lines)
