"""What the settings of a folder name is executed only by those who ran it or trust it, whatever the way."""

import ast
import dataclasses
import json
import typing
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest

import tasks
from blackbox import registry
from tasks import Row
from tasks.applications.denoised_smoothing import DenoisedSmoothing
from tasks.applications.image_classification import ImageClassification, load_classifier
from tasks.configuration import code, from_dict, names, to_dict
from tasks.errors import BlackBoxError, ConfigurationError, ProblemError, TrustError
from tasks.methods import by_name as methods
from tasks.problem.problems import find
from tests.tasks.made_runs import begun_run

Defence = DenoisedSmoothing.Config
Images = ImageClassification.Config

NETWORK = """
from pathlib import Path
import torch
Path(__file__).with_name("canary").touch()

def make(classes, image_shape):
    size = image_shape[0] * image_shape[1] * image_shape[2]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, classes))
"""
BOX = """
from pathlib import Path
from blackbox import ArraySpec, BlackBoxFunction
Path(__file__).with_name("canary").touch()

class Box(BlackBoxFunction):
    inputs = (ArraySpec("image", (1, 8, 8)),)
    outputs = (ArraySpec("logits", (10,)),)
    def evaluate_rows(self, image):
        return image.reshape(len(image), -1)[:, :10]
"""
TOUCH = ["command=touch {canary}"]
# a task, its settings from elsewhere, and the one that names code
ATTACKS = {
    "a program": ("denoised-smoothing", {"box": "os:system", "box_arguments": TOUCH}, "box"),
    "a file": ("denoised-smoothing", {"box": "{folder}/box.py:Box"}, "box"),
    "a file's only box": ("denoised-smoothing", {"box": "{folder}/box.py"}, "box"),
    "an adapter": (
        "denoised-smoothing",
        {"box": "blackbox.adapters:CommandLine", "box_arguments": TOUCH},
        "box",
    ),
    "a server": ("denoised-smoothing", {"box": "um-bridge", "box_arguments": ["url=http://[::1]:9"]}, "box"),
    "a network": ("image-classification", {"network": "{folder}/net.py:make", "width": None}, "network"),
    "a module": ("image-classification", {"network": "net:make", "width": None}, "network"),
}  # fmt: skip


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """Makes a folder as someone else could have made it, and gives it with its canary."""
    monkeypatch.chdir(tmp_path)

    def make(kind, finished=False, **changed):
        task, settings, setting = ATTACKS[kind]
        where, canary = names.PROBLEMS[task], tmp_path / "canary"
        config = Defence() if task == "denoised-smoothing" else Images()
        run = begun_run(tmp_path / "runs", task, "demo", config, [0], problem=where)
        if finished:
            run.finish([Row("fo", 0, "accuracy", 0.5)])
        (run.path / "net.py").write_text(NETWORK)
        (run.path / "box.py").write_text(BOX)
        text = json.dumps(settings).replace("{folder}", str(run.path)).replace("{canary}", str(canary))
        for path in run.path.glob("*.json"):
            content = json.loads(path.read_text())
            if "config" in content:
                content["config"] |= json.loads(text)
                path.write_text(json.dumps(content | changed))
        monkeypatch.syspath_prepend(run.path)
        return run.path, setting, (canary, run.path / "canary")

    return make


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ATTACKS)
def test_resume_executes_nothing_that_settings_name(attack, toy, capsys, kind):
    folder, setting, canaries = attack(kind)
    for more in ((), *[("--workers", "2"), ("--data", "elsewhere")][: 2 * (kind == "a program")]):
        assert toy("resume", str(folder), *more) == 2
        said = capsys.readouterr().err
        assert f"which the setting {setting} names" in said and "--trust" in said and said.count("\n") == 1
    assert not any(canary.exists() for canary in canaries)


@pytest.mark.parametrize("kind", [pytest.param("a program", marks=pytest.mark.slow), "a network"])
def test_a_finished_run_shows_its_tables_and_executes_nothing(attack, toy, capsys, kind, tmp_path):
    folder, setting, canaries = attack(kind, finished=True)
    for words in (("report",), ("resume",), ("report", "--export")):
        toy(*words, str(folder))
        said = capsys.readouterr().out
        assert f"which the setting {setting} names" in said and "--trust" in said
    other, _, _ = attack("a file", finished=True)
    toy("compare", str(folder), str(other), "--page", str(tmp_path / "page.html"))
    found = tasks.load(folder)
    assert found.problem is None and list(found.table["method"]) == ["fo"]
    with pytest.raises(ProblemError, match="trust=True") as refused:
        found.network("fo")
    assert isinstance(refused.value.__cause__, TrustError)
    assert f"the setting {setting}" in str(refused.value.__cause__)
    with pytest.raises(BlackBoxError):
        load_classifier(folder, "fo")
    assert not any(canary.exists() for canary in canaries)


def test_trust_lets_it_go(attack):
    folder, _, (_, canary) = attack("a network", finished=True)
    problem = tasks.load(folder, trust=True).problem
    assert problem is not None and problem.network() is not None and canary.exists()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "changed",
    [
        {"problem": "os:system"},
        {"problem": "{folder}/net.py:make"},
        {"problem": "", "script": "{folder}/net.py"},
        {"named": ["{folder}/net.py"]},
        {"data": "{folder}/net.py", "command": ["blackbox", "{folder}/net.py"]},
    ],
)
def test_no_other_field_of_the_configuration_executes_anything(attack, toy, capsys, changed):
    folder, _, canaries = attack("a network")
    config = json.loads((folder / "config.json").read_text())
    config |= json.loads(json.dumps(changed).replace("{folder}", str(folder)))
    config["config"]["network"] = "resnet7:"  # names code, and none that there is
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "begun.json").unlink(missing_ok=True)  # as who edits one file edits the other
    assert toy("resume", str(folder)) == 2
    assert "--trust" in capsys.readouterr().err and not any(canary.exists() for canary in canaries)


@pytest.mark.slow
def test_who_named_the_code_is_not_asked_and_who_names_other_arguments_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = names.PROBLEMS["denoised-smoothing"]
    mine = Defence(box="blackbox.adapters:CommandLine", box_arguments=("command=true",))
    run = begun_run(tmp_path / "runs", "denoised-smoothing", "demo", mine, [0], problem=where)
    assert run.configuration(Defence) == mine
    theirs = replace(run, config={**run.config, "box_arguments": ["command=rm -r ."]})
    with pytest.raises(TrustError, match=r"execute blackbox.adapters:CommandLine command=rm -r \., which"):
        theirs.configuration(Defence)
    assert theirs.configuration(Defence, trusted=True).box_arguments == ("command=rm -r .",)


def test_a_script_is_trusted_with_the_words_it_was_run_with(tmp_path):
    run = begun_run(
        tmp_path, "mine", "own", Images(), [0], script="/a/loop.py", command=["loop.py", "--steps", "2"]
    )
    run.refuse_untrusted()
    with pytest.raises(TrustError, match=r"execute /a/loop.py --delete"):
        replace(run, command=("loop.py", "--delete")).refuse_untrusted()


@pytest.mark.parametrize(
    ("box", "arguments", "asked"),
    [
        ("b", (), False),
        ("model.onnx", (), False),
        ("heat", ("width=4",), False),
        ("um-bridge", ("url=http://localhost",), True),
        ("simulators.heat:Heat", (), True),
        ("b.py", (), True),
    ],
)
def test_what_ships_and_only_computes_is_not_asked_about(box, arguments, asked):
    found = code.named(Defence(box=box, box_arguments=arguments))
    assert [(each.setting, each.text) for each in found] == ([("box", box)] if asked else [])


@dataclass(frozen=True)
class Parts:
    solver: tasks.Code = ""


@dataclass(frozen=True)
class Nested(tasks.Config):
    plain: str = "os:system"
    parts: Parts = Parts()
    several: tuple[tasks.Code, ...] = ()
    some: tasks.Code | None = None
    by_name: dict[str, Annotated[str, code.NamesCode(lambda name, _: name == "known")]] = dataclasses.field(
        default_factory=dict
    )
    listed: tuple[Parts, ...] = ()
    numbered: dict[str, tuple[Parts, ...]] = dataclasses.field(default_factory=dict)


def test_code_is_seen_at_any_depth_and_only_a_marked_setting_is_resolved():
    config = Nested(
        parts=Parts("a:b"),
        several=("c:d", "e:f"),
        some="g:h",
        by_name={"x": "known", "y": "i:j"},
        listed=(Parts("k:l"), Parts()),
        numbered={"one": (Parts("m:n"),)},
    )
    texts = ["a:b", "c:d", "e:f", "g:h", "i:j", "k:l", "m:n"]
    assert [each.text for each in code.named(config)] == texts
    assert [each.text for each in code.named(from_dict(Nested, to_dict(config)))] == texts
    assert code.find(Nested(some="math:pi"), "some") == pytest.approx(3.14159, abs=1e-5)
    for resolve in (code.find, code.make):
        with pytest.raises(ProblemError, match="plain: expected a setting that is annotated"):
            resolve(config, "plain")


def test_no_module_of_tasks_resolves_names_past_the_gate():
    """`registry` is for the gate (`code`, `trust`), the problem, a command line and literals in Python."""
    allowed = {
        "configuration/code.py",
        "configuration/trust.py",
        "problem/problems.py",
        "command/commands.py",
        "command/box_commands.py",
        "applications/image_classification/networks/named_networks.py",
    }
    importers, root = set(), Path(tasks.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            named = [each.name for each in node.names] if isinstance(node, ast.ImportFrom) else []
            if "blackbox.registry" in modules or (modules == ["blackbox"] and "registry" in named):
                importers.add(path.relative_to(root).as_posix())
    assert importers == allowed


def _texts_in(kind):
    """The settings that can be any text."""
    hints = typing.get_type_hints(kind)
    return [
        field.name
        for field in dataclasses.fields(kind)
        if str in (hints[field.name], *typing.get_args(hints[field.name]))
    ]


@pytest.mark.parametrize("task", names.PROBLEMS)
@pytest.mark.slow
def test_every_setting_of_a_shipped_problem_that_is_resolved_says_so(task, monkeypatch, tmp_path):
    """A text in each setting in turn; whatever comes to the registry must have been asked about."""
    (kind, _), seen, resolved = find(task), 0, []

    def refuse(target, *_, **__):
        resolved.append(str(target))
        raise ConfigurationError(f"no {target}")

    for function in ("find", "make", "module_of", "only_class"):
        monkeypatch.setattr(registry, function, refuse)
    for setting in _texts_in(kind.Config):
        text = "canary_module:thing"
        default = getattr(kind.Config(), setting)
        value = (text,) if isinstance(default, tuple) else text
        resolved.clear()
        try:
            config = kind.Config(**{setting: value}, **({"width": None} if setting == "network" else {}))
        except ConfigurationError:
            continue
        problem, marked = kind(config, folder=tmp_path), [each.text for each in code.named(config)]
        parts = [problem.check, lambda made=problem: made.boxes, problem.network]
        if setting == "methods":
            parts = [lambda made=problem: methods.methods_named(made)]
        for part in parts:
            with suppress(BlackBoxError):
                part()
        assert set(resolved) <= set(marked), setting
        seen += bool(resolved)
    assert seen == {"wake-flow": 0, "image-classification": 1, "denoised-smoothing": 1}[task]
