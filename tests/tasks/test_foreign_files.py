"""Files of a run's folder that someone made, damaged or deleted: a sentence, no traceback, no waiting."""

import contextlib
import io
import json
import os
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import tasks
from blackbox import terminal
from tasks import Run
from tasks.command import cli
from tasks.configuration import names
from tasks.errors import BlackBoxError, CheckpointWarning, RunFolderError
from tasks.folder import checkpoint, row_counts
from tasks.folder.result import Result
from tasks.report import Findings, run_tables

FIELDS = "evaluations/seed-0__sparse-cge.pt"
STATE = "checkpoints/seed-0__sparse-cge.pt"
FILES = ("config.json", "begun.json", "result.json", "metrics.jsonl", "calls/0", "calls.json", FIELDS, STATE)
CONTENTS = {
    "nothing": b"",
    "torn": b'{"a": ',
    "bytes": bytes(range(256)),
    "a list": b"[]\n",
    "null": b"null\n",
    "infinity": b"1e999\n",
    "lists in lists": b"[" * 100_000 + b"\n",
    "objects in objects": b'{"a":' * 100_000 + b"\n",
    "a long number": b'{"format": 3, "schema": 1, "stage": "a", "step": ' + b"9" * 5000 + b"}\n",
    "another encoding": '{"a": 1}\n'.encode("utf-16"),
}
VALUES = (None, True, -1, 10**400, float("nan"), "x", "\x1b[31m", [], [[]], {"a": {}}, "../../x")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two steps."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setitem(names.PROBLEMS, "toy", "toy:Toy")
        patch.chdir(tmp_path_factory.mktemp("finished"))
        assert cli.main(["run", "toy", "--steps", "2", "--validate-every", "1"]) == 0
        (run,) = Path("runs").absolute().iterdir()
        yield run


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def look(folder):
    """What is read of a finished run; the error that there is, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tasks.load(folder)
            assert found.table is not None and found.metrics is not None and repr(found)
            assert found._repr_html_() and found.fields("sparse-cge") is not None
            if (folder / STATE).stat().st_size:
                assert found.network("sparse-cge") is not None
        both = Findings(Run.open(folder), Result.read(folder))
        assert both.gaps() is not None and run_tables.markdown(run_tables.for_papers(both.result))
        assert run_tables.counts(both.result) is not None and run_tables.failures(both.result) is not None
        for name in ("loss", "validation", "seconds"):
            both.curves(name)
    except (BlackBoxError, OSError) as error:
        assert "Traceback" not in str(error)
        return error
    return None


SOME = ("config.json", "metrics.jsonl", FIELDS)  # of the others by the slow ones


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_a_sentence(finished, tmp_path, name):
    refused = 0
    for number, content in enumerate(CONTENTS.values()):
        folder = Path(shutil.copytree(finished, tmp_path / str(number)))
        (folder / name).write_bytes(content)
        error = look(folder)
        assert error is None or str(folder) in str(error)
        refused += error is not None
    assert refused >= {"calls/0": 0, "metrics.jsonl": 6, "calls.json": 0, "begun.json": 8, STATE: 9}.get(
        name, 10
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [("a pipe", "config.json"), ("a pipe", STATE), ("a folder", FIELDS)]
    + [pytest.param(kind, name, marks=pytest.mark.slow) for kind in ("a pipe", "a folder") for name in FILES],
)
def test_what_is_no_file_is_not_waited_for(folder, name, kind):
    (folder / name).unlink()
    {"a pipe": os.mkfifo, "a folder": Path.mkdir}[kind](folder / name)
    error = look(folder)
    assert error is not None or (kind, name) in {("a folder", "calls/0"), ("a folder", "calls.json")}
    assert error is None or str(folder / name) in str(error)


def _set(content, place, value):
    *parts, last = place
    for part in parts:
        content = content[part]
    content[last] = value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("config.json", [("task",), ("config",), ("seeds",), ("data",), ("command",), ("versions",), ("x",)]),
        ("result.json", [("config",), ("seeds",), ("table",), ("machine",), ("calls", "rows")]),
        ("result.json", [("table", 0, name) for name in ("method", "seed", "metric", "value", "rows")]),
        ("result.json", [("table", 0, "extra", name) for name in ("weights", "steps", "validation", "new")]),
        ("result.json", [("table", 0, "ledger", name) for name in ("rows_run", "seconds", "causes")]),
    ],
)  # fmt: skip
def test_values_of_any_kind_are_read_or_refused_in_a_sentence(folder, name, places):
    whole = (folder / name).read_text()
    for place in places:
        for value in VALUES:
            content = json.loads(whole)
            _set(content, place, value)
            (folder / name).write_text(json.dumps(content))
            look(folder)


@pytest.mark.slow
def test_lines_of_metrics_may_hold_anything(folder):
    first, *lines = (folder / "metrics.jsonl").read_text().splitlines()
    for name in ("stage", "step", "loss", "rows", "seconds", "validation"):
        for value in VALUES:
            changed = json.dumps({**json.loads(first), name: value})
            (folder / "metrics.jsonl").write_text("\n".join([changed, *lines, ""]))
            look(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [FIELDS, STATE])
def test_states_with_a_right_checksum_and_wrong_parts_are_refused(folder, name):
    whole = checkpoint.load(folder / name)
    for part in (*whole, None):
        for value in (None, "x", {}, [], 10**30, torch.zeros(2), {"a": torch.eye(2).to_sparse()}):
            checkpoint.save(folder / name, {} if part is None else {**whole, part: value})
            look(folder)
    checkpoint.save(folder / name, {})
    assert isinstance(look(folder), tasks.errors.CheckpointError)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_on_the_command_line_it_is_one_line_and_a_status(folder, capsys, name):
    (folder / name).write_bytes(CONTENTS["lists in lists"])
    (folder / "report.html").unlink()
    for command in ("report", "resume"):
        assert cli.main([command, str(folder)]) in (1, 2)
        err = capsys.readouterr().err
        assert err.startswith("blackbox: ") and err.count("\n") == 1 and name in err


@pytest.mark.slow
def test_no_text_of_a_folder_acts_on_the_terminal_or_in_a_page(finished, folder, capsys, tmp_path):
    evil = "\x1b]0;owned\x07\x9b2J\u202e\u2066\u200b\ufeff <img src=x onerror=alert(1)> "
    evil += "[a](javascript:b) | c\r\n# d"
    content = json.loads((folder / "result.json").read_text())
    content["task"] = evil
    row = content["table"][0]
    row["metric"] = row["unit"] = evil
    row["extra"] |= {evil: evil, "figure": evil}
    row["ledger"] |= {"first_failure": evil, "causes": {evil: 1}}
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "report.html").unlink()
    strange = folder.rename(tmp_path / "run\x1b[2J")
    assert cli.main(["report", str(strange)]) == 0
    cli.main(["compare", str(finished), str(strange), "--page", str(tmp_path / "page.html")])
    cli.main(["report", str(tmp_path / "none\x1b[2J")])
    print(repr(tasks.load(strange)))
    said = "".join(capsys.readouterr())
    assert "owned" in said and r"\x1b]0;owned\x07" in said.replace("\n", "")
    acting = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\u200b\ufeff]"
    assert not re.search(acting, said)
    latex = (strange / "table.tex").read_text()
    assert "owned" in latex and len(latex.splitlines()) == len(
        (finished / "table.tex").read_text().splitlines()
    )
    for text in (
        latex,
        *(path.read_bytes().decode() for path in (strange / "report.html", tmp_path / "page.html")),
    ):
        assert not re.search(acting, text)
    table = (strange / "table.md").read_text()
    assert "<" not in table and "](" not in table.replace("\\](", "") and not re.search("[\x1b\x07]", table)
    assert len({line.replace(r"\|", "").count("|") for line in table.splitlines()}) == 1
    for page in (strange / "report.html", tmp_path / "page.html"):
        tags = Tags()
        tags.feed(page.read_text())
        assert "onerror" not in tags.attributes


class Tags(HTMLParser):
    """The attributes of all tags of a page."""

    def __init__(self):
        super().__init__()
        self.attributes = set()

    def handle_starttag(self, tag, attrs):
        self.attributes |= {name for name, _ in attrs}


def test_what_a_terminal_shows_is_left_as_it_is():
    shown = "±½ 日本語 🙂 é \t tab\nline שלום क\u094d\u200cष 👩\u200d🔬"
    assert terminal.plain(shown) == shown
    assert terminal.plain("a\x1b[1m\rb\udcff\x85") == r"a\x1b[1m\rb\udcff\x85"


@pytest.mark.slow
def test_text_reaches_the_terminal_by_one_module():
    import ast

    root, printing = Path(tasks.__file__).parents[1], set()
    for path in [*(root / "tasks").rglob("*.py"), *(root / "blackbox").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.add(path.relative_to(root).as_posix())
    written = {"blackbox/conformance/check.py"}  # JSON, whose escapes are its own
    alone = {"blackbox/adapters/hosted/client/bb_host.py"}  # which is copied beside a program
    assert printing == {"blackbox/terminal.py"} | written | alone


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda lines: [], "steps 1 to 2 of seed-0/sparse-cge"),
        (lambda lines: [line for line in lines if '"step": 2' not in line], "step 2 of seed-0/sparse-cge"),
    ],
)
def test_lines_of_metrics_that_are_gone_are_told(folder, lost, said):
    path = folder / "metrics.jsonl"
    assert Findings(Run.open(folder), Result.read(folder)).gaps() == []
    lines = lost(path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))
    (folder / "report.html").unlink()
    tasks.report.write(Run.open(folder), tasks.load(folder).problem)
    assert f"metrics.jsonl has no line of {said}" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["deleted", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut short", "all of them"))]
)
def test_notes_of_rows_that_are_gone_make_them_a_bound(folder, how):
    (folder / "result.json").unlink()
    before = row_counts.read(folder)
    assert before["exact"] and before["rows"] > 0
    notes = folder / "calls" / "0"
    if how == "cut short":
        notes.write_bytes(notes.read_bytes()[:20])
    elif how == "deleted":
        notes.unlink()
    else:
        shutil.rmtree(folder / "calls")
    with pytest.warns(CheckpointWarning, match="notes of rows in calls/ are gone"):
        assert cli.main(["resume", str(folder)]) == 0
    result = Result.read(folder)
    assert not result.calls["exact"] and row_counts.in_words(result.calls).startswith("at least ")


def test_metrics_that_are_gone_are_told_where_a_run_goes_on(toy, tmp_path):
    assert toy("run", "toy", "--fault", "stop", "--fault-at", "3", "--validate-every", "1") == 130
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "metrics.jsonl").unlink()
    with pytest.warns(CheckpointWarning, match=r"metrics\.jsonl has no line of steps 1 to "):
        toy("resume", str(folder))


def test_a_pipe_in_a_folder_is_refused_by_name(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(RunFolderError, match=r"pipe: expected a file or folder of the run, got a pipe"):
        Run.open(folder)
