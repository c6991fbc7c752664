import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction, named_code
from blackbox.errors import ConfigurationError
from blackbox.registry import make
from blackbox.registry_arguments import call, parse
from blackbox.wrappers.identity import identity

FILE = """
from blackbox import ArraySpec, BlackBoxFunction
import {helper}

class Pump(BlackBoxFunction):
    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def __init__(self, factor: float = 2.0, *, steps: int = 1, label: str | None = None, wet: bool = False):
        self.factor, self.steps, self.label, self.wet = factor, steps, label, wet

    def evaluate_rows(self, x):
        return self.factor * x

class Parts:
    class Small(Pump):
        pass

def half():
    return Pump(0.5)

def needs(size):
    return Pump(size)

def wrong():
    return 3

ready = Pump(7.0)
number = 3
"""


class Scaled(BlackBoxFunction):
    """For targets of the form module:Class."""

    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def __init__(self, by=3.0):
        self.by = by

    def evaluate_rows(self, x):
        return self.by * x


class Plain(BlackBoxFunction):
    """Has no __init__ of its own."""

    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def evaluate_rows(self, x):
        return x


NAMES = {"scaled": f"{__name__}:Scaled"}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file with black boxes and one that it imports; both are forgotten afterwards, and on no path."""
    before = list(sys.path)
    (tmp_path / "pump_helper.py").write_text("")
    path = tmp_path / "pumps.py"
    path.write_text(FILE.format(helper="pump_helper"))
    yield path
    assert sys.path == before
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            assert named_code.VARIABLE in os.environ
            del sys.modules[name]


def times(box):
    return float(box(np.array(1.0)))


def test_names_and_modules():
    assert type(make("scaled", {}, NAMES)) is Scaled
    assert times(make(f"{__name__}:Scaled", {"by": 4}, {})) == 4


@pytest.mark.parametrize(
    "attribute, arguments, factor",
    [
        (":Pump", {}, 2),
        (":Pump", {"factor": 3}, 3),
        (":half", {}, 0.5),
        (":ready", {}, 7),
        (":needs", {"size": 9}, 9),
        (":Parts.Small", {}, 2),
    ],
)
def test_files(file, attribute, arguments, factor):
    assert times(make(f"{file}{attribute}", arguments, {})) == factor


def test_a_box_from_a_file_can_be_sent_to_another_process(file):
    content = pickle.dumps(make(f"{file}:Pump", {"factor": 5}, {}))
    code = "import blackbox, pickle, sys, numpy as np; print(pickle.load(sys.stdin.buffer)(np.array(1.0)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=content,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip() == b"5.0"


@pytest.mark.parametrize("name", ["json.py", "not-a-name.py"])
def test_a_file_may_have_any_name_and_takes_no_installed_module_s_place(file, name):
    file.rename(file.with_name(name))
    box = make(f"{file.with_name(name)}:Pump", {}, {})
    assert times(box) == 2
    assert type(pickle.loads(pickle.dumps(box))) is type(box)
    import json

    assert json.loads("[1]") == [1]


def test_modules_in_the_current_folder_are_found_behind_all_others(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "string.py").write_text("raise SystemExit('the wrong one')")
    assert times(make("pumps:half", {}, {})) == 0.5
    with pytest.raises(ConfigurationError, match=r"capwords"):
        make("string:capword", {}, {})


def test_a_folder_may_be_named_like_a_file(file, monkeypatch):
    folder = file.parent / "boxes.py"
    folder.mkdir()
    for name in ("pumps.py", "pump_helper.py"):
        (file.parent / name).rename(folder / name)
    monkeypatch.chdir(folder)
    assert times(make("pumps:half", {}, {})) == 0.5


def test_what_an_installed_package_names_is_not_looked_for_in_the_current_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ConfigurationError, match=r"pumps: expected a module that is installed, found none"):
        make("theirs", {}, {"theirs": "pumps:half"})
    assert times(make("pumps:half", {}, {"theirs": "pumps:half"})) == 0.5


LAZY = """
from blackbox import ArraySpec, BlackBoxFunction

class Late(BlackBoxFunction):
    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def evaluate_rows(self, x):
        import pump_helper
        from pump_parts.wheel import WHEELS
        return WHEELS * pump_helper.factor() * x
"""


def test_what_others_do_not_find_beside_a_file_is_told(file):
    loads = "return __import__('pickle')._loads(b'cpump_model\\nMODEL\\n.') * x"  # reads in Python, as joblib
    file.write_text(LAZY.partition("        import")[0] + f"        {loads}\n")
    (file.parent / "pump_model.py").write_text("MODEL = 2.0")
    with pytest.raises(BlackBoxError, match=rf"pump_model lies in {file.parent}, .*PYTHONPATH="):
        times(make(f"{file}:Late", {}, {}))
    file.write_text("import pump_model" + file.read_text())
    del sys.modules["pumps"]
    assert times(make(f"{file}:Late", {}, {})) == 2


def test_a_box_is_known_by_what_its_file_imports_late_too(file):
    helper = file.parent / "pump_helper.py"
    file.write_text(LAZY.replace("from pump_parts.wheel import WHEELS", "WHEELS = 1.0"))
    known = []
    for factor in (2.0, 3.0):
        helper.write_text(f"def factor():\n    return {factor}")
        known.append(identity(make(f"{file}:Late", {}, {})))
        del sys.modules["pumps"]
    assert known[0] != known[1]


def test_what_a_file_imports_late_is_found_beside_it_by_nobody_else(file, tmp_path_factory, monkeypatch):
    installed = tmp_path_factory.mktemp("installed")
    (installed / "meter.py").write_text(
        "import importlib\n"
        "try:\n    import optional_to_meter\nexcept ImportError:\n    pass\n"
        "def later():\n    return importlib.import_module('optional_to_meter')\n"
    )
    (file.parent / "optional_to_meter.py").write_text("raise SystemExit('executed')")
    (file.parent / "pump_helper.py").write_text(
        "import meter\ndef factor():\n    from pump_parts import wheel\n    return wheel.WHEELS"
    )
    (file.parent / "pump_parts").mkdir()
    (file.parent / "pump_parts" / "wheel.py").write_text("WHEELS = 3.0")
    file.write_text(LAZY)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(installed)
        assert times(make(f"{file}:Late", {}, {})) == 9
        with pytest.raises(ModuleNotFoundError):
            sys.modules["meter"].later()
    assert "optional_to_meter" not in sys.modules and sys.modules.pop("meter")


WRONG = [  # (target, arguments, words of the message); FILE is the file
    ("scald", {}, ["'scald'", "a name, module:Class or file.py:Class", "Did you mean 'scaled'?"]),
    ("qqq", {}, ["The names are scaled."]),
    ("", {}, ["a name, module:Class"]),
    (":Class", {}, ["a name, module:Class"]),
    ("module:", {}, ["a name, module:Class"]),
    ("no_such_module:Class", {}, ["no_such_module", "installed or in this folder"]),
    ("json.no_such:Class", {}, ["json.no_such", "installed or in this folder"]),
    (".relative:Class", {}, ["the name of a module"]),
    ("nowhere.py:Class", {}, ["nowhere.py", "a Python file, found none"]),
    ("FILE:Pomp", {}, ["pumps.py", "to have 'Pomp'", "Did you mean 'Pump'?"]),
    # what a file imports is not meant, nor a class or a number that makes no black box
    ("FILE:zzzz", {}, ["expected it to have 'zzzz'. It has Pump, half, needs, ready, wrong."]),
    ("json:R", {}, ["expected it to have 'R'. It has detect_encoding, dump, dumps, load, loads."]),
    ("FILE:number", {}, ["something that makes one, got int. Name a class, a function or a black box of it"]),
    (f"{__name__}:Plain", {"rows": 3}, ["expected no argument 'rows'. It takes failures."]),
    ("FILE:wrong", {}, ["to make a BlackBoxFunction, got int"]),
    ("FILE:Parts", {}, ["to make a BlackBoxFunction, got Parts"]),
    ("FILE:ready", {"factor": 3}, ["no arguments", "made already", "factor"]),
    ("FILE:Pump", {"facter": 3}, ["no argument 'facter'", "Did you mean 'factor'?"]),
    ("FILE:Pump", {"zzz": 3}, ["It takes factor, steps, label, wet."]),
    ("FILE:Pump", {"fz": 3}, ["It takes factor, steps, label, wet."]),  # near none of them
    ("builtins:dict", {}, ["builtins:dict", "something that makes a black box", "Name a subclass"]),
    ("FILE:needs", {}, ["a value for size", "Add size=VALUE"]),
    ("FILE:Pump", {"factor": "x"}, ['factor: expected a number, got "x"']),
    ("FILE:Pump", {"steps": 1.5}, ["steps: expected a whole number, got 1.5"]),
    ("FILE:Pump", {"steps": True}, ["steps: expected a whole number, got true"]),
    ("FILE:Pump", {"wet": 1}, ["wet: expected true or false, got 1"]),
    ("FILE:Pump", {"label": 3}, ["label: expected text or null, got 3"]),
]


@pytest.mark.quick_cases(10)
@pytest.mark.parametrize("target, arguments, words", WRONG, ids=[f"{t} {a}" for t, a, _ in WRONG])
def test_wrong_targets_are_refused(file, target, arguments, words):
    with pytest.raises(ConfigurationError) as caught:
        make(target.replace("FILE", str(file)), arguments, NAMES)
    for word in words:
        assert word in str(caught.value)


def test_a_class_with_two_names_in_a_file_is_one(file):
    file.write_text(file.read_text() + "\nbox = Pump\n")
    assert type(make(str(file), {}, {})).__name__ == "Pump"


def test_a_file_with_no_or_several_classes_asks_for_one(file):
    file.write_text(
        FILE.format(helper="pump_helper").replace("    class Small(Pump):\n        pass", "    x = 1")
    )
    assert times(make(str(file), {}, {})) == 2
    several = file.with_name("several.py")
    several.write_text(file.read_text() + "\nclass Other(Pump):\n    pass\n")
    with pytest.raises(ConfigurationError, match=r"found Pump, Other. Write .*several.py:CLASS"):
        make(str(several), {}, {})
    none = file.with_name("nothing_here.py")
    none.write_text("from blackbox import BlackBoxFunction")  # imported, not its own
    with pytest.raises(ConfigurationError, match=r"found none. Write one there, or name another file."):
        make(str(none), {}, {})
    none.write_text("import os\n\ndef tube():\n    pass\n\ndef samples():\n    pass\n")
    function = none.with_name("functions.py")
    none.rename(function)
    said = r"found none. Name a function that makes one, .*functions.py:NAME. It has samples, tube."
    with pytest.raises(ConfigurationError, match=said):
        make(str(function), {}, {})


def test_what_goes_wrong_inside_the_file_is_shown_as_it_is(file):
    file.write_text("import no_such_package_at_all")
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package_at_all") as caught:
        make(f"{file}:Pump", {}, {})
    assert not isinstance(caught.value, ConfigurationError)
    file.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        make(f"{file}:Pump", {}, {})


# --- arguments

WORDS = [
    ("width=32", 32), ("dt=1e-3", 0.001), ("dt=-2.5", -2.5), ("wet=true", True), ("label=null", None),
    ("advection=mac-cormack", "mac-cormack"), ('label="3"', "3"), ("label=", ""),
    ("path=/a=b.onnx", "/a=b.onnx"), ("label=nan", "nan"), 
    ("wet=True", True), ("wet=False", False), ("label=None", None), ("size=[1", "[1"),
    ("max-rows=4", 4), ("label=${HOME}", "${HOME}"),
]  # fmt: skip


@pytest.mark.parametrize("word, value", WORDS)
def test_words_are_scalars_of_json_or_plain_text(word, value):
    ((key, found),) = parse([word]).items()
    assert key == word.partition("=")[0].replace("-", "_")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "words, said",
    [
        (["width"], ["'width'", "Write name=value"]),
        (["=3"], ["Write name=value"]),
        (["a b=3"], ["Write name=value"]),
        (["__class__.x=3"], ["Write name=value"]),
        (["a=1", "a=2"], ["one value, got a second"]),
        (["size=[1, 2]"], ["size: expected a number, true, false, null or text", "function"]),
        (['size={"a": 1}'], ["expected a number"]),
    ],
)
def test_other_words_are_refused(words, said):
    with pytest.raises(ConfigurationError) as caught:
        parse(words)
    for word in said:
        assert word in str(caught.value)


def test_functions_that_take_anything_and_annotations_that_cannot_be_read_are_left_alone():
    def anything(size=3, **others):
        return size, others

    anything.__annotations__["size"] = "NoSuchName"

    assert call("anything", anything, {"size": "x", "more": 2}) == ("x", {"more": 2})


@pytest.mark.parametrize("value", [None, 3, True, 2.5])
def test_no_single_value_is_taken_for_a_list_or_a_mapping(value):
    def made(names: Sequence[str] = (), sizes: Mapping[str, int] | None = None, many: list | tuple = ()):
        return names, sizes, many

    for name in ("names", "many", *["sizes"][: value is not None]):
        with pytest.raises(ConfigurationError, match=f"{name}: expected a list or a mapping") as refused:
            call("made", made, {name: value})
        assert json.dumps(value) in str(refused.value)
    assert call("made", made, {"names": "abc", "sizes": None}) == ("abc", None, ())


def test_no_argument_is_too_long_to_be_read():
    for text in ("9" * 5000, "[" * 100_000):
        assert parse([f"a={text}"]) == {"a": text}


@pytest.mark.parametrize(
    "target", ["a/" * 2500 + "x.py:A", "a" * 5000, "a." * 2500 + "b:A", "a\0b.py:A", "\udc80:A"]
)
def test_no_name_is_too_long_to_be_refused_in_a_sentence(target):
    with pytest.raises(ConfigurationError, match="expected "):
        make(target, {}, {})
