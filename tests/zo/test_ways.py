"""The ways of a step, from `backward` to `.grad`: as short as ARCHITECTURE.md says, and in its words."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import nn

import zo
from tests.zo.boxes import Sine
from zo.tangents.models.kernel import _KernelAt as KernelAt

ROOT = Path(zo.__file__).parent
PAGE = ROOT.parent / "ARCHITECTURE.md"


class Stack:
    """The functions of `zo` that are on the stack whenever it is looked at."""

    def __init__(self) -> None:
        self.stops: dict[str, None] = {}

    def note(self, frame: FrameType | None = None) -> None:
        frame, names = frame or sys._getframe(1), []
        while frame is not None:
            code = frame.f_code
            path = Path(code.co_filename)
            if ROOT in path.parents and "<" not in code.co_qualname.rpartition(".")[2]:
                name = code.co_qualname.replace(".<locals>", "")
                names.append(f"{path.relative_to(ROOT.parent)}: {name}")
            frame = frame.f_back
        self.stops.update(dict.fromkeys(reversed(names)))

    def note_answer(self) -> None:
        """Look when the next function of `zo` is called."""

        def profile(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and ROOT in Path(frame.f_code.co_filename).parents:
                sys.setprofile(None)
                self.note(frame)

        sys.setprofile(profile)

    def note_calls(self, monkeypatch, owner: type, name: str) -> None:
        """Look whenever a method is called."""
        inner = getattr(owner, name)

        def noted(first, *rest, **named):
            self.note()
            path = Path(inner.__code__.co_filename).relative_to(ROOT.parent)
            self.stops[f"{path}: {inner.__qualname__}"] = None
            return inner(first, *rest, **named)

        monkeypatch.setattr(owner, name, noted)


def section(title: str) -> str:
    """Of ARCHITECTURE.md."""
    match = re.search(rf"## {title}\n(.*?)\n## ", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    return match.group(1)


def assert_short(stops: list[str], title: str | None, most: int = 13) -> None:
    files = {stop.partition(":")[0] for stop in stops}
    assert len(stops) <= most and len(files) <= 9, "\n".join(stops)
    if title is not None:
        for stop in stops:
            assert stop.removeprefix("zo/") in section(title), f"ARCHITECTURE.md does not name {stop}"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_the_way_of_a_query_has_at_most_thirteen_stops_in_nine_files(evaluator, monkeypatch):
    stack, network = Stack(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def objective(network, batch):
        stack.note()
        return network(batch).square().mean(dim=1)

    estimator = zo.CGE(1e-3)
    gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator, chunk=11)
    for _ in range(2):  # the steps that check evaluators
        gradient.backward(torch.randn(5, 3))
    stack.stops.clear()
    for owner, name in ((zo.CGE, "plan"), (zo.CGE, "reduce"), (zo.estimators.Parameters, "add_to_grad")):
        stack.note_calls(monkeypatch, owner, name)
    gradient.backward(torch.randn(5, 3))
    stops = list(stack.stops)
    if evaluator == "stacked":  # the one query a step that is evaluated by `loop` too is beside the way
        stops = [stop for stop in stops if "check.py" not in stop and "loop.py" not in stop]
    assert_short(stops, "The way of a query" if evaluator == "loop" else None)


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_the_way_of_a_tangents_step_has_at_most_fifteen_stops_in_nine_files(evaluator, monkeypatch):
    stack, network, box = Stack(), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), Sine()

    def objective(network, batch):
        stack.note()
        state = network(batch)
        stack.note_answer()
        return box(box(state)).square().mean(dim=1)

    unchecked = zo.tangents.Limits(check_every=None)
    gradient = zo.TangentGradient(network, objective, boxes=[box], limits=unchecked)
    gradient.backward(torch.randn(5, 4))  # the first step learns longer
    stack.stops.clear()
    for owner, name in ((zo.tangents.AutoTangent, "learn"), (KernelAt, "pull")):
        stack.note_calls(monkeypatch, owner, name)
    gradient.backward(torch.randn(5, 4))
    names = [stop.rpartition(" ")[2] for stop in stack.stops]
    for name in ("_LiveRecorder.call", "AutoTangent.learn", "_KernelAt.pull"):
        assert name in names  # the walk saw the evaluation, what learns, and the way back
    assert_short(
        list(stack.stops), "The way of a tangent's step" if evaluator == "stacked" else None, most=15
    )
