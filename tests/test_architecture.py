"""ARCHITECTURE.md is true: its map is that of the imports, and a run goes the way that it tells."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
import torch

import tasks
from tests.zo.boxes import Sine

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@cache
def the_map():
    spec = importlib.util.spec_from_file_location("architecture_map", ROOT / "docs" / "architecture_map.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_map_and_rooms_are_up_to_date_with_imports_and_first_lines():
    """If not: python docs/architecture_map.py."""
    drawn = the_map()
    assert drawn.PICTURE.read_text(encoding="utf-8") == drawn.svg()
    assert f"({drawn.PICTURE.relative_to(ROOT)})" in PAGE
    assert drawn.page() == PAGE


def test_the_map_has_arrows_that_are_known_and_none_that_the_layers_forbid():
    arrows = the_map().arrows()
    assert {
        ("zo/tangents", "zo/execution"),
        ("tasks/applications", "simulators/wake_flow"),
    } <= arrows
    packages = {(own.split("/")[0], there.split("/")[0]) for own, there in arrows}
    assert not {("blackbox", "zo"), ("zo", "tasks"), ("simulators", "zo"), ("zo", "simulators")} & packages


def test_rooms_that_the_page_names_are_there():
    folders = re.findall(r"`((?:blackbox|simulators|zo|tasks|benchmarks)/[\w/]*)/`", PAGE)
    assert len(folders) > 10
    for name in folders:
        assert (ROOT / name).is_dir(), name


class Line(tasks.Problem):
    """A network before and behind a sine."""

    def box(self):
        return Sine()

    def network(self):
        return torch.nn.Linear(4, 4)

    def data(self):
        return tasks.Data.split((torch.randn(24, 4),), batch=4, validation=8, test=8)

    def objective(self, network, batch):
        assert not isinstance(self.box, dict)
        return (network(self.box(network(batch[0]))) - 0.3).square().mean(dim=1)


@pytest.mark.slow
def test_the_way_of_a_run_is_as_the_page_tells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = re.search(r"## The way of a run\n(.*?)\n## ", PAGE, re.DOTALL)
    assert found is not None
    told = re.findall(r"^\d+\. `(tasks/[\w/]+\.py: [\w.]+)`", found.group(1), re.MULTILINE)
    assert len(told) > 10
    seen: dict[str, None] = {}

    here, folder = f"{ROOT}/", f"{ROOT}/tasks/"

    def profile(frame: FrameType, event: str, _: object) -> None:  # at every call of a function: quick
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            seen[f"{frame.f_code.co_filename.removeprefix(here)}: {frame.f_code.co_qualname}"] = None

    sys.setprofile(profile)
    try:
        tasks.run(Line(), methods=["no-gradient"], steps=2)
    finally:
        sys.setprofile(None)
    assert [stop for stop in seen if stop in told] == told
