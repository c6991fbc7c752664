"""Pages at 400 pixels, as a browser draws them: what is cut has a shadow at that end, nothing else has."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.report import Details, Figure, Heading, Paragraph, Table
from tasks.report.html_report import render

STATIC = Path(__file__).parents[2] / "docs" / "_static"
WHITE = "picture.png"
LONG = "x" * 120
WIDE = f'<img src="{WHITE}" width="1200" height="900">'
SITE = {  # what Sphinx and its theme make of pages
    "table": '<div class="table-wrapper container"><div style="width: 1200px; height: 900px"></div></div>',
    "code": '<div class="highlight"><pre style="margin: 0; height: 800px">' + "x" * 300 + "</pre></div>",
    "formula": '<div class="math"><div style="width: 1200px; height: 900px"></div></div>',
    "picture": f'<div class="picture docutils container">{WIDE}</div>',
    "figure": f'<figure>{WIDE}<figcaption style="height: 9px">Below</figcaption></figure>',
    "output of a block": f'<div class="cell_output docutils container">{WIDE}</div>',
}


@pytest.fixture
def drawn(tmp_path):
    """A page as a browser draws it: how dark it is, (height, width)."""
    Image.new("L", (1600, 1200), "white").save(tmp_path / WHITE)

    def draw(page: str, width: int = 400, scrolled: int = 0) -> np.ndarray:
        # a window has 500 pixels at least
        (tmp_path / "frame.html").write_text(
            f'<body style="margin: 0"><iframe srcdoc="{escape(page)}" style="border: 0; width: {width}px; '
            f"height: 800px\" onload=\"for (const box of this.contentDocument.querySelectorAll('*')) "
            f'box.scrollLeft = {scrolled}"></iframe>'
        )
        browser = shutil.which("chromium")
        assert browser is not None
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,800"]
        command += [f"--screenshot={tmp_path / 'seen.png'}", (tmp_path / "frame.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return 255 - np.asarray(Image.open(tmp_path / "seen.png").convert("L"), float)[:, :width]

    return draw


@pytest.fixture
def look(drawn):
    """Whether a page whose one box fills it has a shadow at its left end, and at its right one."""

    def looked(page: str, width: int = 400, scrolled: int = 0) -> tuple[bool, bool]:
        dark = np.median(drawn(page, width, scrolled)[400:600], axis=0)  # lines and text are in few rows
        return bool(dark[:30].max() > 40), bool(dark[-30:].max() > 40)

    return looked


def page(block: str) -> str:
    return render("A run", [], [block])


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_a_table_of_a_report_that_is_cut_shows_it(look):
    wide = Table([f"figure {n}" for n in range(20)], [[0.5] * 20] * 40)
    assert look(page(wide)) == (False, True)
    assert look(page(wide), scrolled=9999) == (False, False)  # the first column stays at the left
    assert look(page(Table(["method", "loss"], [("cge", 0.5)] * 40))) == (False, False)


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_a_picture_of_a_report_that_is_cut_shows_it(look, tmp_path):
    Image.new("L", (1600, 2400), "white").save(tmp_path / "tall.png", dpi=(160, 160))
    picture = page(Figure(tmp_path / "tall.png", "white"))
    assert look(picture) == (False, True)
    assert look(picture, scrolled=100) == (True, True)
    assert look(picture, scrolled=9999) == (True, False)
    assert look(picture, width=1200) == (False, False)


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize(
    "block",
    [
        Heading(LONG),
        Paragraph(LONG),
        Details(LONG, {LONG: LONG}, open=True),
        Table([LONG, "loss"], [(LONG, 0.5)], LONG),
        Table(["where", LONG], [(LONG, LONG)], LONG, prose=True),
    ],
    ids=["heading", "paragraph", "details", "table", "sentences"],
)
def test_a_long_word_of_a_report_breaks_at_the_end_of_the_page(drawn, block):
    assert drawn(render(LONG, [LONG], [block], LONG))[:, -10:].max() < 10


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("block", SITE.values(), ids=SITE)
def test_what_is_cut_on_the_site_shows_it(look, block):
    colours = "--color-background-primary: white; --color-code-background: white"
    site = f"<style>{(STATIC / 'site.css').read_text()} * {{ margin: 0 }}</style>"
    text = f'<!doctype html>{site}<body style="{colours}"><div class="content">{block}</div>'
    assert look(text) == (False, True)
    assert look(text, scrolled=100) == (True, True)
    assert look(text, scrolled=9999) == (True, False)


@pytest.mark.needs("sphinx")
def test_a_picture_that_stands_alone_has_a_box_to_scroll_in():
    from docutils import nodes

    def image() -> nodes.image:
        return nodes.image(uri="a.png")

    alone, among = nodes.paragraph("", "", image()), nodes.paragraph("", "text", image())
    section = nodes.section("", alone, among, nodes.figure("", image()), image())
    document = nodes.document(None, None)
    document += section
    process = runpy.run_path(str(STATIC.parent / "_extensions" / "pictures.py"))["process"]
    process(None, document)
    process(None, document)
    boxes = [getattr(each, "attributes", {}).get("classes") for each in section]
    assert boxes == [["picture"], [], [], ["picture"]]
    assert all(isinstance(box[0], nodes.image) for box in (section[0], section[3]))
