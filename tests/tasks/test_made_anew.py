"""A run trains the problem that it was given, or refuses it: what its settings do not say is in no run."""

import copy
import json
import linecache
import pickle
import subprocess
import sys
import types
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ClassVar

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks import Progress
from tasks.errors import CheckpointWarning, ConfigurationError, ProblemError, RunFolderError


class Times(BlackBoxFunction):
    """k x: what a trained network says of one row gives k away."""

    inputs = (ArraySpec("x", shape=(1,), dtype="float64"),)
    outputs = (ArraySpec("y", shape=(1,), dtype="float64"),)

    def __init__(self, k):
        super().__init__()
        self.k = k

    def evaluate_rows(self, x):
        return self.k * x


class Scaled(tasks.Problem):
    """The loss of an untrained network of weight 1 is the mean of (k x)^2."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none",)
        steps: int = 1
        k: float = 2.0

    def box(self):
        self.double = 2 * self.config.k  # as examples keep a session or a cell
        return Times(self.config.k)

    @cached_property
    def wanted(self):
        return 0.0

    def network(self):
        network = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.ones_(network.weight)
        return network

    def data(self):
        x = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
        self.rows = len(x)
        return tasks.Data(train=lambda seed, step: x, test=x)

    def objective(self, network, x):
        return (self.box(network(x)) - self.wanted).square().flatten(1).mean(dim=1)


SQUARE = float(torch.linspace(0, 1, 8, dtype=torch.float64).square().mean())


def go(problem, folder, **settings):
    return tasks.run(problem, runs=folder / "runs", progress=Progress(), **settings)


def loss(run):
    return float(run.table["test loss"][0])


def with_k(k, base=Scaled):
    class Closed(base):
        def box(self):
            return Times(k)

    return Closed


class Takes:
    def __init__(self, *, k=2.0, **settings):
        super().__init__(**settings)
        self.k = k


def own_init():
    class P(Scaled):
        def __init__(self, k=2.0, **settings):
            super().__init__(**settings)
            self.k = k


def init_that_hands_settings_on():
    class P(Scaled):
        def __init__(self, config=None, *, k=2.0, **settings):
            super().__init__(config, **settings)
            self.k = k


def own_new():
    class P(Scaled):
        def __new__(cls, *args, k=2.0, **settings):
            made = super().__new__(cls)
            made.k = k
            return made


def mixin():
    class P(Takes, Scaled):
        pass


def child_of_a_shipped_one():
    from tasks.applications.wake_flow import WakeFlow

    class P(WakeFlow):
        def __init__(self, k=2.0, **settings):
            super().__init__(**settings)


@pytest.mark.parametrize(
    "write", [own_init, init_that_hands_settings_on, own_new, mixin, child_of_a_shipped_one]
)
def test_a_class_with_a_construction_of_its_own_is_refused_where_it_is_written(write):
    with pytest.raises(ProblemError, match=r"P: expected .* settings alone, .*\. Declare .* in its Config"):
        write()


def test_a_dataclass_is_refused_before_a_folder_is_made(tmp_path):
    @dataclass
    class P(Scaled):
        k: float = 2.0

    with pytest.raises(ProblemError, match=r"got a class with @dataclass .* Declare .* in its Config"):
        go(P(k=5.0), tmp_path)
    assert not list(tmp_path.iterdir())


class Called(type):
    def __call__(cls, k=2.0, **settings):
        made = super().__call__(**settings)
        made.k = k
        return made


class ByItsMetaclass(Scaled, metaclass=Called):
    pass


def assigned(name, value, asked=()):
    problem = Scaled()
    for earlier in asked:
        getattr(problem, earlier)
    setattr(problem, name, value)
    return problem


GIVEN_MORE = {
    "attribute": lambda: assigned("k", 5.0),
    "private": lambda: assigned("_k", 5.0),
    "method": lambda: assigned("objective", lambda network, x: network(x).square().mean(dim=1)),
    "box": lambda: assigned("box", Times(5.0)),
    "box that was made": lambda: assigned("box", Times(5.0), ["box"]),
    "data": lambda: assigned("data", lambda: None),
    "what a method had set": lambda: assigned("double", 10.0, ["box"]),
    "cached property": lambda: assigned("wanted", 1.0),
    "callbacks": lambda: assigned("callbacks", [tasks.Callback()]),
    "copy": lambda: copy.copy(assigned("k", 5.0)),
    "deep copy": lambda: copy.deepcopy(assigned("k", 5.0)),
    "pickle": lambda: pickle.loads(pickle.dumps(assigned("k", 5.0))),
    "metaclass": lambda: ByItsMetaclass(k=5.0),
    "method bound to it": lambda: assigned("network", types.MethodType(lambda self: None, 0)),
    "other settings": lambda: assigned("k", 5.0).with_settings(steps=2),
}


@pytest.mark.parametrize("kind", GIVEN_MORE)
def test_an_object_that_was_given_more_than_settings_is_refused_before_a_folder_is_made(kind, tmp_path):
    with pytest.raises(ProblemError, match=r"got an object with '\w+' set\. Declare settings in \w+\.Config"):
        go(GIVEN_MORE[kind](), tmp_path)
    assert not list(tmp_path.iterdir())


AS_GIVEN = {
    "setting": lambda: Scaled(k=5.0),
    "settings": lambda: Scaled(Scaled.Config(k=5.0)),
    "asked before": lambda: (made := Scaled(k=5.0), made.box, made.data, made.wanted)[0],
    "deep copy": lambda: copy.deepcopy(Scaled(k=5.0)),
    "pickle": lambda: pickle.loads(pickle.dumps(Scaled(k=5.0))),
    "partial": lambda: partial(Scaled, k=5.0)(),
    "settings set": lambda: assigned("config", Scaled.Config(k=5.0)),
    "class of a function": lambda: with_k(5.0)(),
    "class attribute": lambda: type("Named", (with_k(5.0),), {})(),
}


@pytest.mark.parametrize("kind", AS_GIVEN)
def test_what_is_trained_is_what_was_given(kind, tmp_path):
    assert loss(go(AS_GIVEN[kind](), tmp_path)) == pytest.approx(25 * SQUARE, rel=1e-12)


def test_one_object_gives_two_runs_the_same(tmp_path):
    problem = Scaled(k=3.0)
    assert loss(go(problem, tmp_path)) == loss(go(problem, tmp_path)) == pytest.approx(9 * SQUARE)
    assert "box" not in vars(problem)  # of neither is anything made in it


@dataclass(frozen=True)
class Wider(Scaled.Config):
    more: float = 0.0


@pytest.mark.parametrize("config", [{"k": 5.0}, 5.0, tasks.Config(), Wider(k=5.0), Scaled.Config])
def test_settings_of_another_class_are_refused(config):
    with pytest.raises(ConfigurationError, match=r"Scaled: expected settings of Scaled\.Config, got"):
        Scaled(config)


def test_settings_of_a_problem_are_a_dataclass():
    class Plain(Scaled):
        class Config:
            k = 2.0

    with pytest.raises(ConfigurationError, match=r"Plain\.Config: expected a dataclass"):
        Plain()


class Undecorated(tasks.Config):
    k: float = 2.0


@dataclass(frozen=True)
class Untyped(tasks.Config):
    steps = 7


@dataclass(frozen=True)
class Apart:
    steps: int = 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Undecorated, r"got none above Undecorated, whose k would be ignored"),
        (Untyped, r"expected a type for each setting, got steps = 7, which would be ignored.*steps: int ="),
        (Apart, r"expected a subclass of tasks\.Config"),
    ],
)
def test_what_python_would_not_make_a_setting_is_refused(settings, said):
    kind = type("Wrong", (Scaled,), {"Config": settings})
    with pytest.raises(ConfigurationError, match=rf"Wrong\.Config: .*{said}"):
        kind()


def test_a_class_of_settings_may_have_more_than_settings():
    class More(Scaled):
        @dataclass(frozen=True)
        class Config(Scaled.Config):
            most: ClassVar[float] = 3.0
            unit = "m"

            def twice(self):
                return 2 * self.k

    class Renamed(More):
        class Config(More.Config):
            """The same settings."""

    assert (Renamed(k=4.0).config.twice(), More().config.unit) == (8.0, "m")


def test_a_class_of_settings_may_have_slots_and_a_parent_that_says_what_type_a_setting_has():
    class Doubles:
        k: float

        def twice(self):
            return 2 * self.k

    class Slotted(Scaled):
        @dataclass(frozen=True, slots=True)
        class Config(Doubles, Scaled.Config):
            unit: str = "m"

    assert Slotted(k=4.0).config.twice() == 8.0


def test_a_list_among_the_settings_is_each_objects_own(tmp_path):
    class Listed(Scaled):
        @dataclass(frozen=True)
        class Config(Scaled.Config):
            factors: list[float] = field(default_factory=lambda: [1.0])

        def box(self):
            return Times(self.config.factors[0])

    first, second = Listed(), Listed()
    first.config.factors[0] = 5.0
    assert loss(go(first, tmp_path)) == pytest.approx(25 * SQUARE)
    assert loss(go(second, tmp_path)) == pytest.approx(SQUARE)


def test_what_is_no_problem_is_refused(tmp_path):
    with pytest.raises(ProblemError, match=r"expected a tasks\.Problem to run, got .*Name\(\)"):
        go(Scaled, tmp_path)


def unfinished(folder):
    """The folder of a finished run, as if it had been killed before its result."""
    run = tasks.Run.open(next((folder / "runs").iterdir()))
    (run.path / "result.json").unlink()
    return run.path


@pytest.mark.parametrize("lies", [False, True], ids=["of a function", "with the name of another"])
def test_a_class_that_no_other_process_finds_is_not_resumed_as_another(lies, tmp_path, capfd):
    kind = with_k(5.0)
    if lies:
        kind.__qualname__ = "Scaled"
    go(kind(), tmp_path)
    from tasks.command.cli import main

    assert main(["resume", str(unfinished(tmp_path))]) > 0
    assert "no other process finds it. To go on with it there, repeat" in capfd.readouterr().err


def test_a_run_of_a_file_is_not_gone_on_with_by_a_class_of_a_function(tmp_path):
    go(Scaled(), tmp_path)
    namesake = type("Scaled", (with_k(5.0),), {})
    with pytest.raises(RunFolderError, match=r"that it was begun with, .*:Scaled, got a class that no other"):
        go(namesake(), tmp_path, resume=unfinished(tmp_path))


def closed_over(k):
    class P(Scaled):
        def box(self):
            return Times(k)

    return P


def with_default(k):
    class P(Scaled):
        def box(self, k=k):
            return Times(k)

    return P


def with_attribute(k):
    class P(Scaled):
        factor = k

        def box(self):
            return Times(self.factor)

    return P


def of_another_code(k):
    class P(Scaled):
        if k > 2:

            def objective(self, network, x):
                return (network(x)).flatten(1).mean(dim=1)

    return P


def of_a_notebook(text, **known):
    """The class P of a cell, whose module has no file, and whose text is in `linecache`."""
    name, module = f"<cell {text}>", types.ModuleType("of_a_notebook")
    vars(module).update(known, Scaled=Scaled, Times=Times)
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    exec(compile(text, name, "exec"), vars(module))
    return vars(module)["P"]


def of_a_global(k):
    return of_a_notebook("class P(Scaled):\n    def box(self):\n        return (lambda: Times(k))()\n", k=k)


def of_a_function_of_the_notebook(k):
    return of_a_notebook(
        f"def made():\n    return Times({k})\nclass P(Scaled):\n    def box(self):\n        return made()\n"
    )


@pytest.mark.parametrize(
    "write",
    [closed_over, with_default, with_attribute, of_another_code, of_a_global, of_a_function_of_the_notebook],
)
def test_a_class_that_was_written_anew_since_is_said_where_its_run_goes_on(write, tmp_path, recwarn):
    go(write(2.0)(), tmp_path)
    folder = unfinished(tmp_path)
    go(write(2.0)(), tmp_path, resume=folder)  # another object of the same class says nothing
    assert not [str(warning.message) for warning in recwarn]
    (folder / "result.json").unlink()
    with pytest.warns(CheckpointWarning, match=r"its code has changed since the run began: class P "):
        go(write(5.0)(), tmp_path, resume=folder)


@pytest.mark.slow
def test_a_class_has_the_same_digest_in_another_process(tmp_path):
    file = tmp_path / "notebook.py"
    file.write_text(
        "import json, sys\n"
        "from tasks.problem.class_code import class_digest\n"
        "from tests.tasks.test_made_anew import closed_over, Scaled\n"
        "print(json.dumps([class_digest(closed_over(2.0)), class_digest(Scaled)]))\n"
    )
    from tasks.problem.class_code import class_digest

    here = [class_digest(closed_over(2.0)), class_digest(Scaled)]
    for seed in "12":
        out = subprocess.run(
            [sys.executable, file],
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(out.stdout) == here


MADE_BY_A_FUNCTION = """
from tests.tasks.test_made_anew import with_k
Five = with_k(5.0)
Five.__module__ = __name__
"""


def test_a_command_finds_a_class_by_the_name_that_it_was_given(tmp_path, monkeypatch):
    from tasks.command.cli import main

    (tmp_path / "five.py").write_text(MADE_BY_A_FUNCTION)
    monkeypatch.chdir(tmp_path)
    for kind, target in {"only": "five.py", "named": "five.py:Five"}.items():
        assert main(["run", target, "--runs", str(tmp_path / kind / "runs")]) == 0
        folder = unfinished(tmp_path / kind)
        assert main(["resume", str(folder)]) == 0
        assert loss(tasks.load(folder)) == pytest.approx(25 * SQUARE)
