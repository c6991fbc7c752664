"""A folder that earlier code has left goes on to its result, or is refused in a sentence."""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

import tasks
from tasks.applications.images.shapes import shapes
from tasks.command.cli import main
from tasks.configuration import code, names, trust
from tasks.errors import CheckpointWarning
from tasks.folder.run import Run
from tasks.problem import problems
from tests.tasks.made_runs import begun_run
from tests.tasks.problems import Steering

EARLIER = Path(__file__).parent / "earlier_runs"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(EARLIER / "before_tasks_folder", tmp_path / "earlier"))


def resumed(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # it was made with these versions, or with others
        return main(["resume", str(folder), "--trust"])


def test_a_run_of_the_layout_before_goes_on_to_the_result_of_a_whole_one(folder, tmp_path):
    done = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(done) < Steering.Config().steps and not (folder / "result.json").exists()
    assert resumed(folder) == 0
    problem = Steering(methods=("none", "cge"))
    whole = tasks.run(problem, runs=tmp_path, progress=tasks.Progress())
    earlier = tasks.load(folder, trust=True)
    for ours, theirs in zip(whole.result.table, earlier.result.table, strict=True):
        assert theirs.value == pytest.approx(ours.value, rel=1e-9), ours.method
        assert (theirs.rows, theirs.queries) == (ours.rows, ours.queries)
    assert earlier.report.is_file() and len(earlier.metrics) == len(whole.metrics)


def test_a_run_of_earlier_code_from_elsewhere_is_not_executed_unasked(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # of a user who has run none of these problems
    assert main(["resume", str(folder)]) == 2
    assert "expected a run that you made, got one from elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", {"format": 2}, "expected format 3, got 2. Use the version of this package"),
        ("config.json", {"steps_of_old": 7}, "steps_of_old"),
        ("begun.json", {"preset": "small"}, "preset 'small' (now 'own')"),
    ],
)
def test_a_run_that_cannot_go_on_says_why_in_a_sentence(folder, capsys, file, content, words):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    assert resumed(folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("blackbox: ") and words in said and "Traceback" not in said


def test_a_setting_that_no_longer_exists_is_named(folder, capsys):
    for file in ("config.json", "begun.json"):
        content = json.loads((folder / file).read_text())
        content["config"]["trust_region"] = 3
        (folder / file).write_text(json.dumps(content))
    assert resumed(folder) == 2
    said = capsys.readouterr().err
    assert f"{folder / 'config.json'}: no setting is named 'trust_region'" in said
    assert "go on with that code, or start the run anew" in said


@pytest.mark.parametrize("name", ["Count", "Natural", "Positive", "NotNegative", "Fraction"])
def test_a_problem_that_takes_a_name_from_where_it_was_is_told_where_it_is(name):
    with pytest.raises(AttributeError, match=f"it is tasks.configuration.{name} from version 0.3.0 on"):
        getattr(tasks, name)
    from tasks import configuration

    assert hasattr(configuration, name)


def test_a_problem_finds_what_names_code_where_it_was():
    from tasks.code import NamesCode

    assert tasks.code.make is code.make and NamesCode is code.NamesCode


@pytest.mark.parametrize("name", ["wake_flow", "denoised_smoothing", "image_classification", "images"])
@pytest.mark.parametrize(
    "statement", ["from tasks.{} import Some", "import tasks.{}.some", "from tasks import {}"]
)
def test_an_import_from_where_a_problem_was_says_where_it_is(name, statement):
    with pytest.raises(ImportError, match=f"tasks.{name} is tasks.applications.{name} from version 0.3.0 on"):
        exec(statement.format(name))


def test_a_setting_of_an_earlier_run_names_code_where_it_was():
    @dataclass(frozen=True)
    class Config(tasks.Config):
        draws: tasks.Code = "tasks.images.shapes:shapes"

    assert code.find(Config(), "draws") is shapes
    (named,) = code.named(Config())
    assert named.text == "tasks.images.shapes:shapes"  # as the folder has it
    assert str(named.code) == "tasks.applications.images.shapes:shapes"  # which trust is asked of


@pytest.mark.parametrize("name", ["wake-flow", "denoised-smoothing", "image-classification"])
def test_a_problem_that_ships_is_found_where_a_folder_of_0_3_has_it(tmp_path, name):
    today = names.PROBLEMS[name]
    begun_run(tmp_path, name, "own", tasks.Config(), [0], problem=today)
    (folder,) = tmp_path.iterdir()
    content = json.loads((folder / "config.json").read_text())
    before = today.replace("tasks.applications.", "tasks.")
    (folder / "config.json").write_text(json.dumps(content | {"problem": before}))
    code = Run.open(folder).code
    assert isinstance(code, trust.Shipped)  # so it is trusted without a word from the user
    assert problems.load(code).name() == name
