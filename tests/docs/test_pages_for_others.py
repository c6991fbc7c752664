"""The blocks of the pages on physical devices and for coding agents, which `make docs-quick` does not run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

HOWTO = Path(__file__).parents[2] / "docs/howto"


def blocks(page: str, fence: str) -> str:
    text = (HOWTO / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"```{re.escape(fence)}[^\n]*\n(.*?)```", text, re.DOTALL))


@pytest.mark.filterwarnings("ignore::zo.TangentWarning")
def test_a_simulated_device_is_trained_through():
    """Noise, drift and 8 bits: with a fifth of the page's steps two thirds of the error are left, or less."""
    code = blocks("physical_devices.md", "{code-cell}")
    page: dict[str, Any] = {}
    exec(code.split("import warnings")[0].replace("steps=300", "steps=60"), page)
    without, learned = (page["train"](kind)[0] for kind in ("none", "learned"))
    assert learned < 0.67 * without


def test_what_agents_are_told_runs_and_is_there():
    text = (HOWTO / "coding_agents.md").read_text(encoding="utf-8")
    page: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(blocks("coding_agents.md", "python"), page)
    assert float(page["loss"]) < 2
    for name in re.findall(r"`zo\.(\w+)", text):
        assert hasattr(page["zo"], name), name
    exec("\n".join(re.findall(r"`(from blackbox\S* import [\w, ]+)`", text)), page)
