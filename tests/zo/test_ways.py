"""The ways of a step, from `backward` to `.grad`: as short as ARCHITECTURE.md says, and in its words."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zo

ROOT = Path(zo.__file__).parent
PAGE = ROOT.parent / "ARCHITECTURE.md"


class Stack:
    """The functions of `zo` that are on the stack whenever the objective is called."""

    def __init__(self) -> None:
        self.stops: dict[str, None] = {}

    def note(self) -> None:
        frame, found = sys._getframe(1), []
        while frame is not None:
            code = frame.f_code
            path = Path(code.co_filename)
            if ROOT in path.parents and "<" not in code.co_qualname.rpartition(".")[2]:
                name = code.co_qualname.replace(".<locals>", "")
                found.append(f"{path.relative_to(ROOT.parent)}: {name}")
            frame = frame.f_back
        self.stops.update(dict.fromkeys(reversed(found)))


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_the_way_of_a_query_has_at_most_twelve_stops_in_nine_files(evaluator, monkeypatch):
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
        inner = getattr(owner, name)

        def noted(self, *given, inner=inner, **named):
            stack.stops[
                f"{Path(inner.__code__.co_filename).relative_to(ROOT.parent)}: {inner.__qualname__}"
            ] = None
            return inner(self, *given, **named)

        monkeypatch.setattr(owner, name, noted)
    gradient.backward(torch.randn(5, 3))
    stops = list(stack.stops)
    if evaluator == "stacked":  # the one query a step that is evaluated by `loop` too is beside the way
        stops = [stop for stop in stops if "check.py" not in stop and "loop.py" not in stop]
    files = {stop.partition(":")[0] for stop in stops}
    assert len(stops) <= 12 and len(files) <= 9, "\n".join(stops)
    if evaluator == "loop":
        section = re.search(r"## The way of a query\n(.*?)\n## ", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert section is not None
        for stop in stops:
            assert stop.removeprefix("zo/") in section.group(1), f"ARCHITECTURE.md does not name {stop}"
