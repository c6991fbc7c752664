"""What the documentation shows is run: every Python block of the README, and what it says of it."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
MADE = ("_build", "results", "gallery", "project")  # by the documentation's build
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if page.relative_to(ROOT / "docs").parts[0] not in MADE and page.name != "command_line.md"
    ),
]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_readme_s_own_simulator_learns(capsys):
    code, other = blocks("README.md")
    torch.manual_seed(0)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    pendulum, network = scope["pendulum"], scope["network"]
    wanted = torch.linspace(-1, 1, 101)[:, None]
    with torch.no_grad():
        error = (pendulum(network(wanted)) - wanted).square().mean()
    # Doing nothing leaves the angle at zero, an error of 1/3.
    assert error < 0.01 / 3
    (printed,) = re.findall(r"after ([\d,]+) rows", capsys.readouterr().out)
    rows, steps = int(printed.replace(",", "")), 8 * 40
    assert rows == pendulum.ledger.rows_run - 101
    assert steps <= rows < 1.25 * steps  # the rest is the gradient's checks
    exec(compile(other, "README.md", "exec"), scope)
    assert scope["gradient"].next_queries() == 50  # two for each weight


def test_the_readme_has_no_block_that_is_not_run():
    """Python is executed above; commands are targets of the Makefile, pip's or ours; no block is indented."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 125
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert {kind for kind, _ in fenced} == {"python", "console"}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for _, lines in (each for each in fenced if each[0] == "console"):
        for line in lines.splitlines():
            if not line.startswith(("$ pip install ", "$ blackbox run pump.py --rows ")):
                assert line.startswith("$ make ") and line.removeprefix("$ make ") in targets, line
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"\n\n {4}\S", outside)


def test_the_pages_have_no_gaps():
    for page in PAGES:
        assert not re.findall(r"@[A-Z]+@", page.read_text(encoding="utf-8")), page.name


def test_files_that_the_pages_name_are_there():
    made = ("results/", "gallery/", "reference/command_line.md")
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for name in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (page.parent / name).is_file() or name.removeprefix("../").startswith(made), (
                f"{page}: {name}"
            )


def test_links_that_leave_the_pages_are_mended_in_texts_and_not_in_code():
    relinked = runpy.run_path(str(ROOT / "docs" / "_extensions" / "links.py"))["relinked"]
    link, page = "[what is shown](../README.md)", "[what is shown](/index.md)"
    figure = f"```{{figure}} a.svg\n:width: 100%\n\n{link}\n```\n"
    code = f"```markdown\n{link}\n```\n`{link}`\n"
    text = f"{link}\n{figure}\n{link}\n{code}{figure}{link}\n"
    mended = text.replace(link, page).replace(code.replace(link, page), code)
    assert relinked(text, ROOT / "docs", ROOT / "docs" / "a.md") == mended
    assert mended.count(page) == 5


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_files_and_functions_that_are_named_for_developers_are_there(name):
    """`folder/file.py: Class.function`, `folder/file.py` and `folder/`."""
    text = (ROOT / name).read_text(encoding="utf-8")
    packages = "blackbox|zo|tasks|simulators|benchmarks|docs(?!/_build)|tests|examples|packaging"
    named = re.findall(rf"`((?:{packages})/[\w./]*)(?:: ([\w.]+))?`", text)
    assert len(named) > 40
    for path, inside in named:
        assert (ROOT / path).exists(), f"{name}: {path}"
        code = (ROOT / path).read_text(encoding="utf-8") if inside else ""
        for part in inside.split(".") if inside else ():
            assert re.search(rf"^ *(?:def|class) {part}\b", code, re.MULTILINE), f"{name}: {path}: {inside}"


def test_every_page_is_in_the_tree_of_the_site():
    """And every entry of the tree is a page, but for those that the build makes."""
    docs = ROOT / "docs"
    listed = {docs / "index.md"}
    for page in PAGES[1:]:
        for tree in re.findall(r"```\{toctree\}(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            places = [re.sub(r".*<(.+)>", r"\1", name) for name in names]  # some have a title of their own
            listed |= {Path(os.path.normpath(page.parent / f"{place}.md")) for place in places}
    listed.add(docs / "decisions" / "index.md")  # from a page that the build makes
    missing = [path for path in PAGES[1:] if path not in listed]
    assert not missing
    made = {docs / "gallery", docs / "results", docs / "project", docs / "reference"}
    assert not [path for path in listed if not path.is_file() and path.parent not in made]


@pytest.mark.slow
def test_the_blocks_on_black_boxes_run(tmp_path, monkeypatch, capsys):
    """In a folder that has the README's class in `pendulum.py`, as the page asks for."""
    readme = blocks("README.md")[0]
    (tmp_path / "pendulum.py").write_text(readme[: readme.index("\npendulum = ")], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pendulum", raising=False)
    several = blocks("docs/guide/black_boxes.md")
    assert len(several) == 5
    for code in several:
        exec(compile(code, "docs/guide/black_boxes.md", "exec"), {"__name__": "page"})
    adapters, wrappers, check, *served = capsys.readouterr().out.strip().splitlines()
    assert adapters.startswith("[[ 2. -4.]] [[ 2. -4.]] 1")
    assert wrappers.endswith(" 9000")  # 1,000 rows asked for twice and paid for once
    assert check.startswith("mu = ") and len(served) == 3 and served[0].startswith("[[0.")
    monkeypatch.delitem(sys.modules, "pendulum")


@pytest.mark.slow
def test_the_block_on_denoised_smoothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/applications/denoised_smoothing.md")
    with pytest.warns(UserWarning, match="no radius above"):
        exec(compile(code, "docs/applications/denoised_smoothing.md", "exec"), {"__name__": "page"})
    first, *found, predicted = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("Certifying 3 images takes 1,800 queries")
    assert len(found) == 3 and predicted.startswith("tensor([")
    assert (tmp_path / "denoiser.onnx").exists() and (tmp_path / "certificates.json").exists()
