"""VJPs of tangents on meshes beside the exact adjoint's, and training of unknowns at each node.

    python -m benchmarks meshes --size ci                       one small mesh; written nowhere
    python -m benchmarks meshes --size small                    all boxes at 318 to 10,000 nodes
    python -m benchmarks meshes --size small --boxes pipes      one of them

The boxes' equations and discretisations are not those of the tangents (`benchmarks/meshes/boxes.py`). A
tangent learns from the rows of one step of training, 8 rows through the box's calls, or 32 loads. Then its
VJP at rows of other trajectories is compared with the exact one, for white cotangents and for smooth ones, by
the cosine over all numbers. In training a field with a number at each node, added to the states at the start,
is recovered from what the box's calls make of it; the gradient is by the box's own adjoint, by
`zo.TangentGradient` as it is without a setting, and by the perceptron that boxes without a layout get. Errors
are the loss on states that were not trained on. Results go into `benchmarks/results/meshes/BOX.json` as they
come; what is there is not measured again. At the end `table.md` is written there.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.meshes.boxes import BOXES, MeshBox
from blackbox import ArraySpec
from zo.tangents import AutoTangent, CallPairs

FOLDER = protocol.RESULTS / "meshes"
LARGEST = 2_000  # nodes for a perceptron
ROWS, STEPS, RATE = 8, 40, 0.1
TANGENTS: dict[str, Callable[[MeshBox], Any]] = {
    "layout": AutoTangent,
    "perceptron": lambda box: zo.tangents.MLPTangent(seed=0),
    "identity": lambda box: zo.tangents.IdentityTangent(),
    "grid": lambda box: zo.tangents.GridTangent(seed=0),
}
HEAD = """Cosine of the tangent's VJP with the exact adjoint's at rows that it has not seen, white / smooth
cotangents, after one step of training (rows: those it learned from). "layout": what a spec with a mesh gets.
"as a grid": by `zo.tangents.GridTangent`, where nodes are the cells of a line.
Then the seconds that one core spent in that fit and in a VJP of six rows, without the box's own.

"""
TRAINING = """
Loss of a field at each node on states that were not trained on, over that with the exact adjoint after the
same {steps} steps of Adam, all settings left out. A star: a warning came in the run.

"""


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("meshes", __doc__)
    parser.add_argument("--boxes", nargs="+", choices=tuple(BOXES), default=list(BOXES))
    parser.add_argument("--nodes", nargs="+", type=int, help="the sizes of meshes; left out, all")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        box = BOXES["transport"](120)
        case = Case.of(box)
        print(vectors(box, "identity", case), vectors(box, "layout", case), trained(box, "layout", 2))
        return
    for part in ("vectors", "training"):
        for nodes in sorted({size for name in asked.boxes for size in BOXES[name].sizes}):  # small ones first
            for name in asked.boxes:
                sizes = BOXES[name].sizes if part == "vectors" else BOXES[name].trained
                if nodes in sizes and nodes in (asked.nodes or sizes):
                    measure(name, nodes, part)
    write_table()


def measure(name: str, nodes: int, part: str) -> None:
    """Measure of a box and a size what its file lacks; `part` is "vectors" or "training"."""
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result = {part_name: known.get(part_name, {}) for part_name in ("vectors", "training")}
    by_kind, box, case = result[part].setdefault(str(nodes), {}), None, None
    for kind in TANGENTS if part == "vectors" else ("exact", "layout", "perceptron"):
        if (
            kind in by_kind
            or (kind == "perceptron" and nodes > LARGEST)
            or (kind == "grid" and not on_line(name))
        ):
            continue
        box = box or BOXES[name](nodes)
        if part == "vectors":
            case = case or Case.of(box)
            by_kind[kind] = vectors(box, kind, case)
        else:
            by_kind[kind] = trained(box, kind)
        print(name, nodes, part, kind, by_kind[kind], flush=True)
        protocol.write("meshes", ["--size", "small"], result, path)


@dataclass(frozen=True)
class Case:
    """What tangents of a box learn from, and the exact VJPs that theirs are compared with.

    Attributes:
        seen: a call with the rows of one step of training.
        new: a call with rows of other trajectories.
        cotangents: white and smooth ones, by name, `(rows, *shape)`.
        truths: the exact VJPs of these.
    """

    seen: CallPairs
    new: CallPairs
    cotangents: dict[str, Tensor]
    truths: dict[str, Tensor]

    @classmethod
    def of(cls, box: MeshBox) -> Case:
        """Call the box, and its adjoint for the exact products."""
        seen = pairs_of(box, states(box, ROWS if box.calls > 1 else 32, seed=3))
        new = states(box, 4, seed=99)
        new = new[torch.linspace(0, len(new) - 1, 6).round().long()]
        white = torch.from_numpy(np.random.default_rng(5).standard_normal(tuple(new.shape)))
        cotangents = {"white": white, "smooth": box.smooth(len(new), 1234)}
        truths = {name: box.vjp(new, v) for name, v in cotangents.items()}
        return cls(seen, pairs_of(box, new), cotangents, truths)


def vectors(box: MeshBox, kind: str, case: Case) -> dict[str, Any]:
    """How well a tangent's VJPs agree with the exact ones after one step of training."""
    tangent = TANGENTS[kind](box)
    if kind == "grid":
        line = (ArraySpec("u", (1, *box.shape), layout="grid"),)
        seen, new = (replace(pairs, inputs=line, outputs=line) for pairs in (case.seen, case.new))
        case = replace(case, seen=seen, new=new)
    began = time.process_time()
    tangent.see(case.seen)
    tangent.learn()
    figures: dict[str, Any] = {"rows": len(case.seen.z), "fit seconds": time.process_time() - began}
    for name, v in case.cotangents.items():
        began = time.process_time()
        product = tangent.at(case.new).pull(v.flatten(1)).reshape(v.shape)
        figures["vjp seconds"] = time.process_time() - began
        figures[name] = _cosine(product, case.truths[name])
    if kind == "layout":
        figures["chosen"] = type(tangent.model).__name__
        figures["measured"] = tangent.model.measured
    return figures


def on_line(name: str) -> bool:
    """Whether a box's nodes are the cells of a line, which a network of convolutions can learn."""
    return name == "long-steps"


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
        goals, unseen_goals = (through(states_at_start + wanted, box) for states_at_start in (start, unseen))
    scale = float(goals.var())

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor], call: Callable[[Tensor], Tensor]) -> Tensor:
        state, goal = batch
        return (through(network(state), call) - goal).square().flatten(1).mean(dim=1) / scale

    network = Field(box.shape)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gradient = None
    if kind != "exact":
        settings: dict[str, Any] = {"seed": 0, "trust_policy": zo.tangents.TrustPolicy(early=1)}
        if kind == "perceptron":
            settings["tangent"] = zo.tangents.MLPTangent(seed=0)
        gradient = zo.TangentGradient(
            network, lambda model, batch: loss(model, batch, box), boxes=[box], **settings
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
    """The states at which a step of training calls the box."""
    states_in_turn = [box.start(rows, seed)]
    for _ in range(box.calls - 1):
        states_in_turn.append(box(states_in_turn[-1]))
    return torch.cat(states_in_turn)


def pairs_of(box: MeshBox, state: Tensor) -> CallPairs:
    """The pairs that one call of the box shows."""
    z, y = state.flatten(1), box(state).flatten(1)
    return CallPairs(box.inputs, box.outputs, z, y, others=(None,))


def write_table() -> None:
    """Write `table.md` of all files."""
    lines = [
        HEAD + "| box | nodes | rows | layout | perceptron | identity | as a grid | fit, VJP (s) |",
        "| --- " * 8 + "|",
    ]
    training = ["| box | nodes | layout | perceptron |", "| --- " * 4 + "|"]
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for nodes, kinds in result["vectors"].items():
            cells = [_vectors(kinds.get(kind)) for kind in TANGENTS]
            cells[-1] = cells[-1] if on_line(path.stem) else "-"
            layout = kinds.get("layout")
            if layout is None:  # not yet
                continue
            times = f"{layout['fit seconds']:.1f}, {layout['vjp seconds']:.2f}"
            lines.append(
                f"| {path.stem} | {int(nodes):,} | {layout['rows']} | {' | '.join(cells)} | {times} |"
            )
        for nodes, kinds in result["training"].items():
            best = kinds["exact"]["error"]
            cells = [_over(kinds.get(kind), best) for kind in ("layout", "perceptron")]
            training.append(f"| {path.stem} | {int(nodes):,} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n" + TRAINING.format(steps=STEPS) + "\n".join(training) + "\n"
    (FOLDER / "table.md").write_text(text, encoding="utf-8")


def _vectors(cosines: dict[str, Any] | None) -> str:
    return "not run" if cosines is None else f"{cosines['white']:.3f} / {cosines['smooth']:.3f}"


def _over(training: dict[str, Any] | None, best: float) -> str:
    return (
        "not run"
        if training is None
        else f"{training['error'] / best:.3g}{'*' if training['warnings'] else ''}"
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300))
