"""Tutorials and how-tos: `make docs` runs them; here is what a build would not say."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from benchmarks import catalogue
from tasks.methods.by_name import METHODS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page for folder in ("tutorials", "howto") for page in (DOCS / folder).glob("*.md"))
LESSONS = [page for page in PAGES if page.name != "index.md"]


def cells(page: Path) -> list[tuple[str, str]]:
    """Options and code of each cell."""
    found = re.findall(r"^```\{code-cell\}\n((?::[^\n]*\n)*)(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    return [(options, code) for options, code in found]


@pytest.mark.parametrize("folder", ["tutorials", "howto"])
def test_every_page_is_in_its_index_once_as_a_link_and_once_in_the_tree(folder: str):
    index = (DOCS / folder / "index.md").read_text("utf-8")
    (tree,) = re.findall(r"```\{toctree\}(.*?)```", index, re.S)
    there = {page.stem for page in LESSONS if page.parent.name == folder}
    assert set(re.findall(r"^[a-z_]+$", tree, re.M)) == there
    assert set(re.findall(r"\]\(([a-z_]+)\.md\)", index)) == there


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_pages_name_benchmarks_and_methods_that_there_are(page: Path):
    text = page.read_text("utf-8")
    known = {*catalogue.BENCHMARKS, "page"}
    assert set(re.findall(r"python -m benchmarks (\w+)", text)) <= known
    for named in re.findall(r"--methods ((?:[a-z][\w-]* ?)+)", text):
        own = {"mse", "student"} if "denoised-smoothing" in text else set()
        assert set(named.split()) <= set(METHODS) | own


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_code_can_be_read_and_writes_nowhere_but_in_temporary_folders(page: Path):
    found = cells(page)
    assert len(found) == page.read_text("utf-8").count("```{code-cell}")
    for _, code in found:
        ast.parse(code)
        assert not re.search(r"runs=(?!folder|tempfile)", code)
    if found:
        assert page.read_text("utf-8").startswith("---\njupytext:")


def test_tutorials_end_with_what_to_read_next():
    for page in LESSONS:
        if page.parent.name == "tutorials":
            *_, last = page.read_text("utf-8").split("\n## ")
            assert last.startswith("What next") and last.count("](") >= 2, page.name


@pytest.mark.slow
@pytest.mark.needs("sphinx")
def test_a_warning_of_a_block_is_shown_without_the_kernels_file(monkeypatch):
    from docutils import nodes

    monkeypatch.syspath_prepend(DOCS)
    outputs = importlib.import_module("_extensions.outputs")
    said = "/tmp/ipykernel_12054/3605140198.py:36: TangentWarning: Step 10\n  gradient.backward(batch)\n"
    own = "open('/tmp/ipykernel_1/2.py')\n"
    page = nodes.section("", *(nodes.literal_block(text, text) for text in (said + said, own)))
    outputs.process(None, page)
    warned, kept = page.children
    assert (
        warned.astext()
        == warned.rawsource
        == 2 * ("line 36: TangentWarning: Step 10\n  gradient.backward(batch)\n")
    )
    assert kept.astext() == kept.rawsource == own


def test_a_page_s_notebook_has_its_blocks_and_nothing_that_only_sphinx_reads(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    notebooks = importlib.import_module("_extensions.notebooks")
    pages = notebooks.lessons()
    shown = [page for page in pages if page.name in notebooks.NOT_RUN]  # whose blocks the build does not run
    assert len(shown) == len(notebooks.NOT_RUN)
    assert set(pages) - set(shown) == {each for each in LESSONS if cells(each)}
    assert len({page.stem for page in pages}) == len(pages)  # one file each
    assert {each for each in LESSONS if each.parent.name == "tutorials"} <= set(pages)
    for page in pages:
        text = page.read_text("utf-8")
        made = notebooks.notebook(text, notebooks.block_of(page))
        code = [each.source for each in made.cells if each.cell_type == "code"]
        blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert code == [each.strip() for each in (blocks if page in shown else [c for _, c in cells(page)])]
        assert code
        words = "\n".join(each.source for each in made.cells if each.cell_type == "markdown")
        assert words.startswith("# ") and not re.search(r"\{[a-z:-]+\}`|\.md[)#]|jupytext", words)
        assert f"/_build/notebooks/{page.stem}.ipynb" in notebooks.offered(page, text)


@pytest.mark.slow
def test_the_code_of_a_field_s_page_says_which_model_was_used(capsys):
    page = DOCS / "howto" / "fit_a_field.md"
    code = cells(page)[0][1].replace("rows=CALLS * 6", "rows=CALLS * 2")
    exec(compile(code, page.name, "exec"), {})
    assert "the model: EquationTangent" in capsys.readouterr().out
