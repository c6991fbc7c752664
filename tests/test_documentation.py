"""What the documentation shows is run: every Python block of the README, and what it says of it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_readme_s_own_simulator_learns(capsys):
    (code,) = blocks("README.md")
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    torch, pendulum, network = scope["torch"], scope["pendulum"], scope["network"]
    wanted = torch.linspace(-1, 1, 101)[:, None]
    with torch.no_grad():
        error = (pendulum(network(wanted)) - wanted).square().mean()
    # Doing nothing leaves the angle at zero, an error of 1/3.
    assert error < 0.01 / 3
    assert scope["gradient"].queries() == 25
    assert f"after {32 * (200 * 26 + 2 * 12 + 1):,} rows" in capsys.readouterr().out


def test_the_readme_has_no_gaps():
    assert not re.findall(r"@[A-Z]+@", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_files_that_the_readme_names_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / name).is_file(), name
