"""What a run has warned of is in its folder: once for each training, with the step, whatever kills it."""

import json
import warnings
from dataclasses import dataclass

import pytest
import torch

import tasks
import zo
from tasks import Progress
from tasks.errors import RunFolderError
from tests.tasks.problems import Beside, Steering


class Alarm(UserWarning):
    """Of a user's own code."""


class Alarming(Beside):
    """Its box's readings look odd at some steps, which the problem says, and its test is odd too."""

    @dataclass(frozen=True)
    class Config(Beside.Config):
        methods: tuple[str, ...] = ("no-gradient", "first-order")

    def box(self):
        warnings.warn("The box was made before anything else.", Alarm, stacklevel=1)
        return super().box()

    def training_batch(self, seed, step):
        if step in (2, 4):
            warnings.warn(
                f"Step {step + 1}: a reading of {0.25 * step:g} in layer 0.weight.", Alarm, stacklevel=1
            )
        if step == 4:
            warnings.warn(f"Step {step + 1}: a reading of 7 in layer 2.weight.", Alarm, stacklevel=1)
        return super().training_batch(seed, step)

    def evaluate(self, network):
        warnings.warn("The test is odd.", Alarm, stacklevel=1)
        return super().evaluate(network)


EXPECTED = [("", None, None, "The box was made before anything else.")] + [
    (method, seed, step, text)
    for seed in (0, 1)
    for method in ("no-gradient", "first-order")
    for step, text in [
        (3, "Step 3: a reading of 0.5 in layer 0.weight."),
        (5, "Step 5: a reading of 7 in layer 2.weight."),
        (None, "The test is odd."),
    ]
]


class Crash(Exception):
    """As a kill would come."""


class CrashesAt(Progress):
    """Raises when a step of a stage is shown, which is after its metrics were written."""

    def __init__(self, stage, step):
        super().__init__()
        self.fatal, self.at = (stage, step), ""

    def begin(self, stage, steps, *, done=0, unit="step"):
        self.at = stage
        super().begin(stage, steps, done=done, unit=unit)

    def update(self, step, metrics=None):
        if (self.at, step) == self.fatal:
            raise Crash


def entries(result):
    return [(entry.method, entry.seed, entry.step, entry.text) for entry in result.warnings]


def ours(result):
    return [entry for entry in entries(result) if entry[3] in {text for *_, text in EXPECTED}]


@pytest.fixture(autouse=True)
def as_python_shows_them():
    """Tests of pytest show every warning each time; a user's Python shows each once from one place."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default")
        yield


def test_a_result_has_each_warning_once_with_method_seed_and_step(tmp_path):
    run = tasks.run(Alarming(), seeds=2, runs=tmp_path, progress=Progress())
    assert entries(run.result) == EXPECTED
    assert {entry.kind for entry in run.result.warnings} == {"Alarm"}
    # as another process reads it
    assert tasks.load(run.path).result.warnings == run.result.warnings
    assert json.loads((run.path / "result.json").read_text())["warnings"][1] == {
        "text": EXPECTED[1][3],
        "kind": "Alarm",
        "method": "no-gradient",
        "seed": 0,
        "step": 3,
    }


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("seed-0/no-gradient", 1),
        ("seed-0/no-gradient", 3),
        ("seed-0/no-gradient", 4),
        ("seed-0/no-gradient", 5),
        ("seed-0/first-order", 1),
        ("seed-1/first-order", 5),
    ],
)
def test_a_run_that_is_killed_keeps_its_warnings_and_ends_with_those_of_an_undisturbed_one(
    tmp_path, stage, step
):
    with pytest.raises(Crash):
        tasks.run(Alarming(), seeds=2, runs=tmp_path, progress=CrashesAt(stage, step))
    (folder,) = tmp_path.iterdir()
    noted = [json.loads(line)["text"] for line in (folder / "warnings.jsonl").read_text().splitlines()]
    before = EXPECTED.index(next(entry for entry in EXPECTED if f"seed-{entry[1]}/{entry[0]}" == stage))
    first, second, _ = (text for *_, text in EXPECTED[1:4])
    assert noted == [text for *_, text in EXPECTED[:before]] + [first] * (step >= 3) + [second] * (step >= 5)
    run = tasks.run(Alarming(), resume=folder, progress=Progress())
    assert entries(run.result) == EXPECTED


@pytest.mark.slow
def test_the_terminal_shows_each_once_as_ever(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *where: shown.append(str(message)))
    tasks.run(Alarming(), seeds=2, runs=tmp_path, progress=Progress())
    texts = {text for *_, text in EXPECTED} | {"Step 5: a reading of 1 in layer 0.weight."}
    assert sorted(shown) == sorted(texts)


@pytest.mark.slow
def test_what_the_user_ignores_is_not_noted_and_what_is_an_error_stays_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Alarm)
        assert tasks.run(Alarming(), runs=tmp_path, progress=Progress()).result.warnings == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Alarm)
        with pytest.raises(Alarm, match="The box was made"):
            tasks.run(Alarming(), runs=tmp_path, progress=Progress())


@pytest.mark.slow
def test_a_second_run_of_one_process_has_its_own(tmp_path):
    first, second = (tasks.run(Alarming(), runs=tmp_path / name, progress=Progress()) for name in "ab")
    assert entries(first.result) == entries(second.result) == EXPECTED[:7]
    before = warnings.showwarning
    second.network("first-order")  # trains nothing, and notes nothing in what is finished
    assert warnings.showwarning is before
    assert tasks.load(second.path).result.warnings == second.result.warnings


@pytest.mark.slow
def test_the_report_says_each_once_with_its_places(tmp_path):
    run = tasks.run(Alarming(), seeds=2, runs=tmp_path, progress=Progress())
    page = run.report.read_text()
    assert page.count("a reading of 0.5 in layer 0.weight") == 1
    assert (
        "no-gradient (seed 0, step 3; seed 1, step 3), first-order (seed 0, step 3; seed 1, step 3)" in page
    )
    assert page.count("The test is odd.") == 1
    assert "outside of training" in page
    quiet = tasks.run(Steering(methods=["none"]), runs=tmp_path / "quiet", progress=Progress())
    assert ">Warnings<" in page
    assert ">Warnings<" not in quiet.report.read_text()


@pytest.mark.slow
def test_the_closing_words_say_that_there_were_some(tmp_path, capsys):
    run = tasks.run(Alarming(), seeds=2, runs=tmp_path, progress=Progress())
    run.show()
    assert "\n4 warnings, with methods, seeds and steps in the report.\nReport: " in capsys.readouterr().out
    tasks.run(Steering(methods=["none"]), runs=tmp_path / "quiet", progress=Progress()).show()
    assert "warning" not in capsys.readouterr().out


def test_a_box_that_warns_in_other_words_each_time_fills_no_disk_and_crowds_out_nobody(tmp_path):
    class Chatty(Steering):
        def training_batch(self, seed, step):
            for letters in range(300):
                warnings.warn("a" * (letters + 1), Alarm, stacklevel=1)
            if step == 3:
                warnings.warn("trust was lost", zo.TangentWarning, stacklevel=1)
            return super().training_batch(seed, step)

    run = tasks.run(Chatty(methods=["first-order"], steps=5), runs=tmp_path, progress=Progress())
    alarms = [warning for warning in run.result.warnings if warning.kind == "Alarm"]
    # 100 of what was said before training, 100 of training, and how many more of each
    assert [sum(w.method == method for w in alarms) for method in ("", "first-order")] == [101, 101]
    # 300 things were said, 100 of which are in the list
    assert (alarms[-1].text.split(" further")[0], alarms[-1].step) == ("200", None)
    assert [w.step for w in run.result.warnings if w.kind == "TangentWarning"] == [4]
    assert (run.path / "warnings.jsonl").stat().st_size < 1e5


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "line", [b"rubbish", b"[1]", b'{"stage": 1}', b'{"stage": "a", "step": -1, "kind": "", "text": ""}']
)
def test_a_broken_line_is_named_before_anything_is_done(tmp_path, line):
    with pytest.raises(Crash):
        tasks.run(Alarming(), runs=tmp_path, progress=CrashesAt("seed-0/first-order", 5))
    (folder,) = tmp_path.iterdir()
    with open(folder / "warnings.jsonl", "ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(
        RunFolderError, match=r"warnings.jsonl, line \d: expected a JSON object .* Delete that line"
    ):
        tasks.run(Alarming(), resume=folder, progress=Progress())


@pytest.mark.slow
def test_a_torn_last_line_is_neither_read_nor_glued_to_the_next(tmp_path):
    with pytest.raises(Crash):
        tasks.run(Alarming(), runs=tmp_path, progress=CrashesAt("seed-0/first-order", 3))
    (folder,) = tmp_path.iterdir()
    with open(folder / "warnings.jsonl", "ab") as stream:
        stream.write(b'{"stage": "a", "st')
    assert entries(tasks.run(Alarming(), resume=folder, progress=Progress()).result) == EXPECTED[:7]


def test_a_loop_of_ones_own_notes_its_warnings(tmp_path):
    model = torch.nn.Linear(1, 1)

    def step(i):
        if i == 1:
            warnings.warn("A second step.", Alarm, stacklevel=1)
        return {"loss": 1.0}

    with tasks.own_run("pump", Steering.Config(), runs=tmp_path) as run:
        warnings.warn("Before.", Alarm, stacklevel=1)
        outcome = tasks.methods.train(
            run, "seed-0/adam", steps=3, step=step, state={"m": model}, model="m", progress=Progress()
        )
        run.finish([tasks.Row.of(outcome, {"test error": 1.0})])
    assert entries(tasks.load(run.path).result) == [
        ("", None, None, "Before."),
        ("adam", 0, 2, "A second step."),
    ]
