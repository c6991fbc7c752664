import base64
import re
from html import unescape
from html.parser import HTMLParser

import pandas
import pytest
from PIL import Image
from typeguard import suppress_type_checks

from tasks.errors import ConfigurationError
from tasks.report import Details, Figure, Heading, Paragraph, Table, pictures
from tasks.report.html_report import render, write

pytestmark = pytest.mark.usefixtures("drawn")
EVIL = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects tags with attributes, and text."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.stack == []
    return reader


@pytest.fixture
def picture(tmp_path):
    figure, axes = pictures.figure()
    axes[0, 0].plot([1, 2, 3], [3, 2, 1])
    return pictures.save(figure, tmp_path / "curve.png")


@pytest.fixture
def page(picture):
    return render(
        title=f"Report {EVIL}",
        lead=[f"First {EVIL}", "Second"],
        blocks=[
            Heading(f"Heading {EVIL}"),
            Paragraph(f"Paragraph {EVIL}"),
            Table(
                [f"head {EVIL}", "MAE"], [(f"cell {EVIL}", "0.5 ± 0.1"), ("NON", "-")], f"caption {EVIL}", [0]
            ),
            Figure(picture, f"alt {EVIL}", f"shown {EVIL}"),
            Details(f"details {EVIL}", {f"name {EVIL}": EVIL, "network": {"width": 3, "sizes": [1, 2]}}),
        ],
        footer=f"footer {EVIL}",
    )


def test_text_from_outside_is_shown_and_never_run(page):
    reader = read(page)
    assert "script" not in [tag for tag, _ in reader.tags]
    # title twice: head and heading; the alternative text is an attribute
    assert "".join(reader.text).count(EVIL) == 13
    (image,) = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert image["alt"] == f"alt {EVIL}"


def test_the_page_asks_for_nothing_from_outside(page):
    page_without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<iframe|srcset", page_without_pictures)
    for tag, attributes in read(page).tags:
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith("data:"), (tag, attributes)


def test_pictures_are_inside_to_the_byte(page, picture):
    (image,) = [attributes for tag, attributes in read(page).tags if tag == "img"]
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == picture.read_bytes()


def test_it_suits_a_phone_and_the_dark(page):
    (viewport,) = [a for tag, a in read(page).tags if tag == "meta" and a.get("name") == "viewport"]
    assert viewport["content"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in page
    assert page.count('<div class="scroll" tabindex="0"><table') == page.count("<table") == 1
    (box,) = re.findall(r"^\.scroll \{(.*?)\}", page, re.S | re.M)  # tests/docs/test_phone.py looks at it
    assert "overflow-x: auto" in box and box.count("no-repeat local") == box.count("no-repeat scroll") == 2


def test_rows_stand_out_and_settings_are_flat(page):
    assert '<tr class="emphasised"><td>cell' in page
    assert "<dt>network.width</dt><dd>3</dd><dt>network.sizes</dt><dd>1, 2</dd>" in page


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ConfigurationError, match="row 1: expected 2 cells, got 1"):
        Table(["a", "b"], [(1, 2), (3,)])


def test_a_frame_is_a_table_whose_numbers_have_four_digits():
    frame = pandas.DataFrame({EVIL: ["x" * 90, EVIL], "b": [0.123456, 12345.0], "c": [None, True]})
    read(Table(frame))
    cells = re.findall(r"<t(?:d|h scope)[^>]*>(.*?)</t[dh]>", Table(frame))
    assert [unescape(cell) for cell in cells] == [
        EVIL, "b", "c", "x" * 90, "0.1235", "-", EVIL, "12,345", "True",
    ]  # fmt: skip


@suppress_type_checks
def test_text_among_the_blocks_is_shown_and_never_run():
    assert "script" not in [tag for tag, _ in read(render("t", [], [EVIL])).tags]


def test_a_missing_figure_leaves_the_old_report(tmp_path):
    path = write(tmp_path / "report.html", "old", [], [])
    with pytest.raises(FileNotFoundError):
        write(path, "new", [], [Figure(tmp_path / "no.png", "nothing")])
    assert "old" in path.read_text()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("suffix", "kind"), [("webp", "image/webp"), ("gif", "image/gif"), ("PNG", "image/png")]
)
def test_a_picture_is_named_by_its_kind(picture, tmp_path, suffix, kind):
    copy = tmp_path / f"copy.{suffix}"
    copy.write_bytes(picture.read_bytes())
    assert f'src="data:{kind};base64,' in render("t", [], [Figure(copy, "a curve")])


def test_a_picture_that_browsers_do_not_show_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"curve\.tiff: expected \.png, \.webp, \.gif"):
        Figure(tmp_path / "curve.tiff", "a curve")


def test_only_a_picture_whose_text_is_small_scrolls(picture):
    wide, narrow = (render("t", [], [Figure(picture, "a", wide=wide)]) for wide in (True, False))
    assert '<div class="card"><div class="scroll" tabindex="0"><img' in wide
    assert '<div class="card"><img' in narrow


def test_cells_of_prose_carry_their_header_to_a_phone():
    text = render("t", [], [Table(["what", EVIL], [("loss", "a sentence")], prose=True)])
    cells = [attributes for tag, attributes in read(text).tags if tag == "td"]
    assert [cell["data-head"] for cell in cells] == ["what", EVIL]
    assert '<table class="prose">' in text


@pytest.mark.parametrize(("inches", "pixels"), [(3.0, 303), (8.0, 808)])
def test_text_of_pictures_has_one_size_whatever_their_width(tmp_path, inches, pixels):
    figure, _ = pictures.figure(inches, 3.0)
    path = pictures.save(figure, tmp_path / "one.png")
    (image,) = [a for tag, a in read(str(Figure(path, "one"))).tags if tag == "img"]
    assert image["style"] == f"max-width: {pixels}px"


def test_a_picture_that_does_not_say_its_inches_is_not_blown_up(tmp_path):
    path = tmp_path / "plain.gif"
    Image.new("RGB", (90, 40)).save(path)
    (image,) = [a for tag, a in read(str(Figure(path, "one"))).tags if tag == "img"]
    assert image["style"] == "max-width: 90px"
