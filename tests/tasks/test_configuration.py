import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

import tasks
from tasks.configuration import from_dict, to_dict
from tasks.errors import CheckpointWarning, ConfigurationError
from tasks.folder.changed_code import warn_of_changes
from tests.tasks.made_runs import made


@dataclass(frozen=True)
class Inner:
    width: int = 4
    kinds: tuple[Literal["a", "b"], ...] = ("a",)


@dataclass(frozen=True)
class Outer:
    steps: int
    rate: float = 0.1
    name: str = "x"
    flag: bool = False
    limit: int | None = None
    either: float | int = 3
    span: tuple[float, int] = (0.5, 2)
    nested: tuple[tuple[int, ...], ...] = ((1, 2), (3,))
    where: Path = Path("data")
    table: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


CHANGED = Outer(
    steps=7,
    rate=1e-30,
    flag=True,
    limit=3,
    span=(1.0, -2),
    nested=((), (9,)),
    where=Path("/a b/c"),
    table={"x": 0.1},
    inner=Inner(width=9, kinds=("b", "a")),
)


@pytest.mark.parametrize("configuration", [Outer(steps=1), CHANGED], ids=["defaults", "changed"])
def test_json_gives_back_an_equal_configuration_of_the_same_types(configuration):
    back = from_dict(Outer, json.loads(json.dumps(to_dict(configuration))))
    assert back == configuration
    assert repr(back) == repr(configuration)  # 3 == 3.0, but their texts differ
    assert hash(back.nested) == hash(configuration.nested)


WRONG = [  # (changes to a good one, words of the message)
    ({"stepz": 3}, ["Outer", "'stepz'", "Did you mean 'steps'?"]),
    ({"inner": {"widht": 3}}, ["Outer.inner", "'widht'", "'width'"]),
    ({"qqqq": 3}, ["'qqqq'", "steps", "rate"]),
    ({"steps": 3.0}, ["Outer.steps", "int", "3.0"]),
    ({"steps": True}, ["Outer.steps", "int", "True"]),
    ({"steps": "3"}, ["Outer.steps", "int", "'3'"]),
    ({"rate": "fast"}, ["Outer.rate", "number", "'fast'"]),
    ({"rate": None}, ["Outer.rate", "number", "None"]),
    ({"flag": 1}, ["Outer.flag", "boolean", "1"]),
    ({"limit": 1.5}, ["Outer.limit", "integer", "1.5"]),
    ({"span": [1.0]}, ["Outer.span", "required"]),
    ({"span": [1.0, "a"]}, ["Outer.span[1]", "integer", "'a'"]),
    ({"nested": [[1], [2, "a"]]}, ["Outer.nested[1][1]", "'a'"]),
    ({"nested": "12"}, ["Outer.nested", "array", "'12'"]),
    ({"inner": {"kinds": ["c"]}}, ["Outer.inner.kinds[0]", "'a' or 'b'", "'c'"]),
    ({"inner": 5}, ["Outer.inner", "5"]),
    ({"table": {"x": "y"}}, ["Outer.table", "number"]),
    ({"where": 4}, ["Outer.where", "4"]),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_wrong_settings_are_refused_by_name(changes, words):
    with pytest.raises(ConfigurationError) as caught:
        from_dict(Outer, {"steps": 1, **changes})
    for word in words:
        assert word in str(caught.value)


def test_a_setting_without_default_must_be_given():
    with pytest.raises(ConfigurationError, match="'steps'"):
        from_dict(Outer, {})


def test_an_int_for_a_float_becomes_one_and_a_union_keeps_the_type_that_fits():
    assert type(from_dict(Outer, {"steps": 1, "rate": 2}).rate) is float
    assert type(from_dict(Outer, {"steps": 1, "either": 2}).either) is int
    assert type(from_dict(Outer, {"steps": 1, "either": 2.0}).either) is float


@pytest.mark.parametrize("value", [{1, 2}, object()], ids=["set", "object"])
def test_values_that_json_cannot_hold_are_refused_with_their_place(value):
    with pytest.raises(ConfigurationError, match=r"Outer\.span"):
        to_dict(dataclasses.replace(CHANGED, span=(value, 1)))


@dataclass(frozen=True)
class Checked(tasks.Config):
    sizes: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list)


def test_a_list_is_taken_for_a_tuple_and_a_text_is_not():
    found = Checked(methods=["none", "cge"], sizes=[1, 2], names=["a"])
    assert found.methods == ("none", "cge") and found.sizes == (1, 2) and found.names == ["a"]
    with pytest.raises(ConfigurationError, match=r"sizes: expected a valid integer at \[1\], got 'a'"):
        Checked(sizes=[1, "a"])
    with pytest.raises(ConfigurationError, match="methods: expected a valid tuple, got 'none'"):
        Checked(methods="none")


def test_a_run_whose_file_has_changed_is_told_to_go_on_with_it(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("")
    run = made(tmp_path, {"none": 1.0}, finished=False)
    changed = dataclasses.replace(run, problem=f"{file}:Own", versions={"own.py": "0" * 12})
    with pytest.warns(CheckpointWarning, match="its code has changed since .*: own.py 0+ -> .* of both"):
        warn_of_changes(changed)


def test_the_files_of_a_runs_code_are_those_that_it_imports_from_its_folder(tmp_path):
    texts = {
        "own.py": "import json, part.inner, other\nfrom helper import loss\n",
        "helper.py": "import torch\nfrom own import nothing\n",
        "part/__init__.py": "",
        "part/inner.py": "from . import beside\n",
        "part/beside.py": "from ..helper import loss\n",
        "other.py": f"from {'.' * 99}far import away\n{'(' * 300}{')' * 300}",
        "json.pyc": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    run = made(tmp_path, {"none": 1.0}, finished=False)
    run = dataclasses.replace(run, problem=f"{tmp_path / 'own.py'}:Own")
    parts = {"__init__.py", "inner.py", "beside.py"}
    assert set(run.code_versions()) == {"own.py", "helper.py", "other.py"} | parts
    before = run.code_versions()
    (tmp_path / "part" / "beside.py").write_text("from ..helper import loss as lost\n")
    changed = {name for name, digits in run.code_versions().items() if before[name] != digits}
    assert changed == {"beside.py"}


@dataclass(frozen=True)
class Nested(tasks.Config):
    grid: tuple[tuple[int, int], ...] | None = ((8, 16), (4, 8))
    bare: tuple = ((1, 2), ("a", (3,)))  # pyright: ignore[reportMissingTypeArgument]
    free: Any = (1, (2, 3))
    named: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"x": (1.0, 2.0)})
    listed: list[tuple[int, int]] = field(default_factory=lambda: [(1, 2)])


def test_nested_tuples_are_tuples_again_when_a_run_goes_on():
    begun = Nested(grid=((2, 3),), free=[[1], {"y": [2]}])
    assert begun.free == ((1,), {"y": (2,)})
    resumed = from_dict(Nested, json.loads(json.dumps(to_dict(begun))))
    assert resumed == begun and repr(resumed) == repr(begun)
    assert resumed.listed == [(1, 2)] and isinstance(resumed.bare[1][1], tuple)


def test_lists_are_taken_for_tuples_inside_of_others_too_and_what_is_wrong_there_is_named():
    assert Nested(grid=[[1, 2]], named={"x": [1.0]}).grid == ((1, 2),)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match=r"grid: expected a valid integer.* at \[0\]\[1\], got 'b'"):
        Nested(grid=[[1, "b"]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ConfigurationError, match=r"grid: expected .* at most 2 items.* at \[0\], got \[1, 2, 3\]"
    ):
        Nested(grid=[[1, 2, 3]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ConfigurationError, match=r"grid: expected .* at most 2 items.* at \[1\], got \(1, 2, 3\)"
    ):
        Nested(grid=[[1, 2], (1, 2, 3)])  # pyright: ignore[reportArgumentType]
    assert Nested(listed=[[1, 2], (3, 4)]).listed == [(1, 2), (3, 4)]  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ConfigurationError, match=r"listed: expected a valid integer.* at \[0\]\[1\], got 'b'"
    ):
        Nested(listed=[[1, "b"]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="listed: expected a valid list, got 3"):
        Nested(listed=3)  # pyright: ignore[reportArgumentType]
