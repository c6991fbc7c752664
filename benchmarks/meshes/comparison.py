"""VJPs of tangents on meshes beside the exact adjoint's, and training of unknowns at each node.

    python -m benchmarks meshes --size ci                       one small mesh; written nowhere
    python -m benchmarks meshes --size small                    all boxes at 318 to 10,000 nodes
    python -m benchmarks meshes --size small --boxes pipes      one of them

The boxes' equations and discretisations are not those of the tangents (`benchmarks/meshes/boxes.py`). A
tangent learns from the rows of one step of training, 8 rows through the box's calls, or 32 loads. Then its
VJP at rows of other trajectories is compared with the exact one, for white cotangents and for smooth ones, by
the cosine over all numbers. In training a field with a number at each node, added to the states at the start,
is found from what the box's calls make of it; the gradient is by the box's own adjoint, by
`zo.TangentGradient` as it is without a setting, and by the perceptron that boxes without a layout get. Errors
are the loss on states that were not trained on. Results go into `benchmarks/results/meshes/BOX.json` as they
come; what is there is not measured again. At the end `table.md` is written there.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.meshes.boxes import BOXES, MeshBox
from zo.tangents import AutoTangent, CallPairs
from zo.tangents.pairs import joined

FOLDER = protocol.RESULTS / "meshes"
SIZES = (318, 1_141, 3_324, 10_000)
TRAINED = (318,)  # nodes of the boxes that are trained through
LARGEST = 2_000  # nodes for a perceptron
ROWS, STEPS, RATE = 8, 40, 0.1
TANGENTS: dict[str, Callable[[MeshBox], Any]] = {
    "layout": AutoTangent,
    "perceptron": lambda box: zo.MLPTangent(seed=0),
    "identity": lambda box: zo.IdentityTangent(),
}
HEAD = """Cosine of the tangent's VJP with the exact adjoint's at rows that it has not seen, white / smooth
cotangents, after one step of training (rows: those it learned from). "layout": what a spec with a mesh gets.
Then the seconds of that fit and of a VJP of six rows, by the wall, on a machine that others shared.

"""
TRAINING = """
Loss of a field at each node on states that were not trained on, over that with the exact adjoint after the
same {steps} steps of Adam, all settings left out. A star: a warning came in the run.

"""


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("meshes", __doc__)
    parser.add_argument("--boxes", nargs="+", choices=tuple(BOXES), default=list(BOXES))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        box = BOXES["transport"](120)
        print(vectors(box, "identity"), vectors(box, "layout"), trained(box, "layout", 2))
        return
    for part in ("vectors", "training"):
        for nodes in SIZES if part == "vectors" else TRAINED:  # small ones of all boxes first
            for name in asked.boxes:
                measure(name, nodes, part)
    write_table()


def measure(name: str, nodes: int, part: str) -> None:
    """All of a box at a size that its file has not yet; `part` is "vectors" or "training"."""
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {each: known.get(each, {}) for each in ("vectors", "training")}
    own, box = found[part].setdefault(str(nodes), {}), None
    for kind in TANGENTS if part == "vectors" else ("exact", "layout", "perceptron"):
        if kind in own or (kind == "perceptron" and nodes > LARGEST):
            continue
        box = box or BOXES[name](nodes)
        own[kind] = vectors(box, kind) if part == "vectors" else trained(box, kind)
        print(name, nodes, part, kind, own[kind], flush=True)
        protocol.write("meshes", ["--size", "small"], found, path)


def vectors(box: MeshBox, kind: str) -> dict[str, Any]:
    """How well a tangent's VJPs agree with the exact ones after one step of training."""
    tangent = TANGENTS[kind](box)
    seen = states(box, ROWS if box.calls > 1 else 32, seed=3)
    began = time.perf_counter()
    pairs = pairs_of(box, seen)
    tangent.see(pairs)
    tangent.observe(joined([pairs]))
    fit = time.perf_counter() - began
    new = states(box, 4, seed=99)
    new = new[torch.linspace(0, len(new) - 1, 6).round().long()]
    pairs = pairs_of(box, new)
    white = torch.from_numpy(np.random.default_rng(5).standard_normal(tuple(new.shape)))
    found: dict[str, Any] = {"rows": len(seen), "fit seconds": fit}
    for name, v in (("white", white), ("smooth", box.smooth(len(new), 1234))):
        began = time.perf_counter()
        own = tangent.vjp(pairs, v.flatten(1)).reshape(new.shape)
        found["vjp seconds"] = time.perf_counter() - began
        found[name] = _cosine(own, box.vjp(new, v))
    if kind == "layout":
        found["chosen"] = type(tangent.model).__name__
        found["measured"] = tangent.model.measured
    return found


class Field(nn.Module):
    """A number at each node, added to states."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.field = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def forward(self, state: Tensor) -> Tensor:
        """Of `(rows, *shape)`."""
        return state + self.field


def trained(box: MeshBox, kind: str, steps: int = STEPS) -> dict[str, Any]:
    """Find a field from what the box's calls make of it; the loss on states that were not trained on."""
    wanted = box.smooth(1, seed=77)[0]
    start, unseen = box.start(64, seed=11), box.start(16, seed=12)

    def through(state: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        for _ in range(box.calls):
            state = call(state)
        return state

    with torch.no_grad():
        goals, unseen_goals = (through(each + wanted, box) for each in (start, unseen))
    scale = float(goals.var())

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor], call: Callable[[Tensor], Tensor]) -> Tensor:
        state, goal = batch
        return (through(network(state), call) - goal).square().flatten(1).mean(dim=1) / scale

    network = Field(box.shape)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gradient = None
    if kind != "exact":
        settings: dict[str, Any] = {"seed": 0, "max_rows": 1.0}
        if kind == "perceptron":
            settings["tangent"] = zo.MLPTangent(seed=0)
        gradient = zo.TangentGradient(
            network, lambda own, batch: loss(own, batch, box), boxes=[box], **settings
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for step in range(steps):
            rows = (torch.arange(ROWS) + step * ROWS) % len(start)
            batch = start[rows], goals[rows]
            optimizer.zero_grad()
            if gradient is None:
                loss(network, batch, box.advance).mean().backward()
            else:
                gradient.backward(batch)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        error = float(loss(network, (unseen, unseen_goals), box).mean())
        begun = float(loss(Field(box.shape), (unseen, unseen_goals), box).mean())
    return {"error": error, "at the start": begun, "warnings": len(caught)}


def states(box: MeshBox, rows: int, seed: int) -> Tensor:
    """What the box is asked in a step of training."""
    found = [box.start(rows, seed)]
    for _ in range(box.calls - 1):
        found.append(box(found[-1]))
    return torch.cat(found)


def pairs_of(box: MeshBox, state: Tensor) -> CallPairs:
    """A call of the box."""
    z, y = state.flatten(1), box(state).flatten(1)
    none = torch.zeros(0, len(z), dtype=torch.bool)
    empty = z.new_zeros(0, *z.shape), y.new_zeros(0, *y.shape)
    return CallPairs(box.inputs, box.outputs, z, *empty, none, y, others=(None,))


def write_table() -> None:
    """`table.md`, of all files."""
    lines = [
        HEAD + "| box | nodes | rows | layout | perceptron | identity | fit, VJP (s) |",
        "| --- " * 7 + "|",
    ]
    training = ["| box | nodes | layout | perceptron |", "| --- " * 4 + "|"]
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for nodes, kinds in found["vectors"].items():
            cells = [_vectors(kinds.get(kind)) for kind in TANGENTS]
            own = kinds["layout"]
            times = f"{own['fit seconds']:.1f}, {own['vjp seconds']:.2f}"
            lines.append(f"| {path.stem} | {int(nodes):,} | {own['rows']} | {' | '.join(cells)} | {times} |")
        for nodes, kinds in found["training"].items():
            best = kinds["exact"]["error"]
            cells = [_over(kinds.get(kind), best) for kind in ("layout", "perceptron")]
            training.append(f"| {path.stem} | {int(nodes):,} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n" + TRAINING.format(steps=STEPS) + "\n".join(training) + "\n"
    (FOLDER / "table.md").write_text(text, encoding="utf-8")


def _vectors(own: dict[str, Any] | None) -> str:
    return "not run" if own is None else f"{own['white']:.3f} / {own['smooth']:.3f}"


def _over(own: dict[str, Any] | None, best: float) -> str:
    return "not run" if own is None else f"{own['error'] / best:.3g}{'*' if own['warnings'] else ''}"


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300))
