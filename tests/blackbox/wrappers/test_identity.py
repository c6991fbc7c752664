"""Which box an answer is of: two that differ in one thing never share answers, equal ones always do."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from blackbox import ArraySpec, BlackBoxFunction, Cached, ConfigurationError
from blackbox.adapters import CommandLine, TorchModule, from_callable
from blackbox.wrappers import Fallback, Wrapper
from blackbox.wrappers.identity import identity

X, Y = (ArraySpec("x", (1,)),), (ArraySpec("y", (1,)),)


class Holder(BlackBoxFunction):
    """Whatever it holds is what it is."""

    inputs, outputs = X, Y

    def __init__(self, part: Any = None) -> None:
        self.part = part
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        return x


class Domain(Holder):
    """What many call a domain's size, a ledger's name or a box."""

    def __init__(self, size: float) -> None:
        self.box = size
        super().__init__()


class Slots(Holder):
    __slots__ = ("_Slots__own", "k")

    def __init__(self, k: float, own: float = 0) -> None:
        self.k, self.__own = k, own
        super().__init__()


class MoreSlots(Slots):
    __slots__ = ("more",)

    def __init__(self, k: float, more: float) -> None:
        super().__init__(k)
        self.more = more


class Around(Wrapper):
    """Changes answers by what it holds: a box of another kind among it."""

    def __init__(self, box: BlackBoxFunction, other: Any) -> None:
        super().__init__(box)
        self.other = other


class Program(CommandLine):
    """A program, with what is done to its answer."""

    def __init__(self, scale: float) -> None:
        super().__init__(["true"], X, Y, output_files={"y": "y.npy"}, input_files={"x": "x.npy"})
        self.scale = scale


class TwiceProgram(Program):
    def evaluate_rows(self, *arrays: Any) -> Any:
        return tuple(2 * each for each in super().evaluate_rows(*arrays))


class Kind(enum.Enum):
    ONE, TWO = 1, 2


class Thing:
    def __init__(self, **kept: Any) -> None:
        vars(self).update(kept)

    def __call__(self, x: Any) -> Any:
        return x

    def method(self, x: Any) -> Any:
        return x


class SlotThing:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


class SlotChild(SlotThing):
    __slots__ = ("b",)

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


@dataclass
class Plan:
    size: float
    names: list[str] = field(default_factory=list)
    classwide: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class FrozenPlan:
    size: float


class Pair(NamedTuple):
    a: int
    b: int


class Units(np.ndarray):
    unit = "m"


def with_unit(unit: str) -> np.ndarray:
    given = np.ones(2).view(Units)
    given.unit = unit
    return given


class Numbers(list[int]):
    pass


def named(name: str) -> Numbers:
    given = Numbers([1])
    given.name = name  # pyright: ignore[reportAttributeAccessIssue]
    return given


def closure(k: float) -> Callable[..., Any]:
    def inner(x: Any) -> Any:
        return k * x

    return inner


def keyword(k: float) -> Callable[..., Any]:
    def inner(x: Any, *, k: float = k) -> Any:
        return k * x

    return inner


def default(k: float) -> Callable[..., Any]:
    def inner(x: Any, k: float = k) -> Any:
        return k * x

    return inner


def attribute(k: float) -> Callable[..., Any]:
    def inner(x: Any) -> Any:
        return inner.k * x

    inner.k = k  # pyright: ignore[reportFunctionMemberAccess]
    return inner


def decorated(k: float) -> Callable[..., Any]:
    @functools.wraps(closure)
    def outer(x: Any) -> Any:
        return closure(k)(x)

    return outer


def deep(k: float) -> Callable[..., Any]:
    return lambda x: [closure(k)(x) for _ in range(2)]


def linear(seed: int, **change: Any) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.LeakyReLU(change.get("slope", 0.1)))
    network.train(change.get("training", False))
    if "buffer" in change:
        network.register_buffer("b", torch.tensor(change["buffer"]), persistent=False)
    if "factor" in change:
        network.factor = change["factor"]  # pyright: ignore[reportAttributeAccessIssue]
    if "hook" in change:
        network[0].register_forward_hook(change["hook"])
    if "pre_hook" in change:
        network[0].register_forward_pre_hook(change["pre_hook"])
    if "mean" in change:
        network[1].running_mean += change["mean"]  # pyright: ignore[reportOperatorIssue]
    return network


def circle(k: int) -> list[Any]:
    given: list[Any] = [k]
    given.append(given)
    return given


def crossed(k: int) -> Thing:
    one, other = Thing(k=1), Thing(k=k)
    one.other, other.other = other, one  # pyright: ignore[reportAttributeAccessIssue]
    return one


def masked(mask: list[bool], fill: float = 0.0) -> np.ndarray:
    return np.ma.array([1.0, 2.0], mask=mask, fill_value=fill)


def strided(order: Any) -> np.ndarray:
    return np.array([[1.0, 2.0], [3.0, 4.0]], order=order)


def structured(name: str) -> np.ndarray:
    return np.array([(1.0, 2)], dtype=[(name, "f8"), ("b", "i4")])


def sparse(value: float) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix([[0.0, value], [1.0, 0.0]])


def tensor_of(indices: int) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[indices]]), torch.ones(1), (3,), check_invariants=True)


# Each pair differs in one thing; both are made anew by each call of the function.
PARTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "int-float": lambda: (1, 1.0),
    "int-bool": lambda: (1, True),
    "zero": lambda: (0.0, -0.0),
    "zero-in-list": lambda: ([0.0], [-0.0]),
    "nan-none": lambda: (float("nan"), None),
    "str-bytes": lambda: ("a", b"a"),
    "str-path": lambda: ("a", Path("a")),
    "empty": lambda: ([], ()),
    "set-frozenset": lambda: ({1}, frozenset({1})),
    "nesting": lambda: ([1, [2]], [[1], 2]),
    "dict-order": lambda: ({"scale": 2, "shift": 1}, {"shift": 1, "scale": 2}),
    "dict-key": lambda: ({1: 0}, {1.0: 0}),
    "ordered-dict": lambda: (collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1)),
    "defaultdict": lambda: (collections.defaultdict(int, a=1), collections.defaultdict(float, a=1)),
    "deque": lambda: (collections.deque([1, 2]), collections.deque([2, 1])),
    "counter": lambda: (collections.Counter("aab"), collections.Counter("abb")),
    "range": lambda: (range(3), range(4)),
    "slice": lambda: (slice(3), slice(4)),
    "namedtuple": lambda: (Pair(1, 2), (1, 2)),
    "list-subclass": lambda: (named("a"), named("b")),
    "decimal": lambda: (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "fraction": lambda: (fractions.Fraction(1, 3), fractions.Fraction(1, 4)),
    "date": lambda: (datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)),
    "pattern": lambda: (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "bytearray": lambda: (bytearray(b"a"), bytearray(b"b")),
    "array-array": lambda: (array.array("d", [1.0]), array.array("d", [2.0])),
    "namespace": lambda: (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    "circle": lambda: (circle(1), circle(2)),
    "crossed": lambda: (crossed(1), crossed(2)),
    "enum": lambda: (Kind.ONE, Kind.TWO),
    "enum-value": lambda: (Kind.ONE, 1),
    "scalar": lambda: (np.float32(1), np.float64(1)),
    "scalar-digits": lambda: (np.longdouble(1) / 3, np.longdouble(1.0 / 3)),
    "dtype": lambda: (np.ones(2, "f4"), np.ones(2, "f8")),
    "bytes-order": lambda: (np.ones(2, "<f8"), np.ones(2, ">f8")),
    "shape": lambda: (np.ones((2, 1)), np.ones((1, 2))),
    "layout": lambda: (strided("C"), strided("F")),
    "bits": lambda: (np.array([1.0]), np.nextafter([1.0], 2)),
    "array-zero": lambda: (np.zeros(1), -np.zeros(1)),
    "array-list": lambda: (np.ones(1), [1.0]),
    "objects": lambda: (np.array([1, "a"], object), np.array([1, "b"], object)),
    "words": lambda: (np.array(["a"]), np.array(["b"])),
    "date-unit": lambda: (np.array([1], "datetime64[s]"), np.array([1], "datetime64[D]")),
    "field": lambda: (structured("a"), structured("c")),
    "mask": lambda: (masked([False, False]), masked([False, True])),
    "fill": lambda: (masked([False, True]), masked([False, True], 5.0)),
    "masked-or-not": lambda: (masked([False, False]), np.array([1.0, 2.0])),
    "unit": lambda: (with_unit("m"), with_unit("mm")),
    "matrix": lambda: (np.ones((1, 1)), np.ones((1, 1)).view(np.matrix)),
    "dtypes": lambda: (np.dtype("f4"), np.dtype("f8")),
    "torch-dtypes": lambda: (torch.float32, torch.float64),
    "sparse": lambda: (sparse(1.0), sparse(2.0)),
    "sparse-tensor": lambda: (tensor_of(0), tensor_of(1)),
    "tensor": lambda: (torch.ones(1), -torch.ones(1)),
    "tensor-dtype": lambda: (torch.ones(1), torch.ones(1).bfloat16()),
    "tensor-array": lambda: (torch.ones(1), np.ones(1, "f4")),
    "object": lambda: (Thing(a=1), Thing(a=2)),
    "object-slots": lambda: (SlotThing(1), SlotThing(2)),
    "object-parents-slots": lambda: (SlotChild(1, 3), SlotChild(2, 3)),
    "dataclass": lambda: (Plan(1), Plan(1.0)),
    "dataclass-beside": lambda: (Plan(1, ["a"]), Plan(1, ["b"])),
    "dataclass-slots": lambda: (FrozenPlan(1), FrozenPlan(2)),
    "class": lambda: (Thing, SlotThing),
    "lambda": lambda: (lambda x: x, lambda x: 2 * x),
    "constant": lambda: (lambda x: 1, lambda x: 1.0),
    "constant-zero": lambda: (lambda x: 0.0, lambda x: -0.0),
    "attribute-name": lambda: (lambda x: x.real, lambda x: x.imag),
    "closure": lambda: (closure(1), closure(2)),
    "default": lambda: (default(1), default(2)),
    "keyword": lambda: (keyword(1), keyword(2)),
    "function-attribute": lambda: (attribute(1), attribute(2)),
    "decorated": lambda: (decorated(1), decorated(2)),
    "comprehension": lambda: (deep(1), deep(2)),
    "remembering": lambda: (functools.lru_cache(closure(1)), functools.lru_cache(closure(2))),
    "partial": lambda: (functools.partial(np.multiply, 1), functools.partial(np.multiply, 2)),
    "partial-keyword": lambda: (functools.partial(closure, k=1), functools.partial(closure, k=2)),
    "ufunc": lambda: (np.sin, np.cos),
    "torch-function": lambda: (torch.sin, torch.cos),
    "method": lambda: (Thing(a=1).method, Thing(a=2).method),
    "builtin-method": lambda: (np.ones(1).dot, np.zeros(1).dot),
    "callable": lambda: (Thing(a=1), Thing(a=1).method),
    "generator": lambda: (np.random.default_rng(1), np.random.default_rng(2)),
    "random-state": lambda: (np.random.RandomState(1), np.random.RandomState(2)),
    "module": lambda: (os, sys),
    "weights": lambda: (linear(0), linear(1)),
    "slope": lambda: (linear(0), linear(0, slope=0.2)),
    "training": lambda: (linear(0), linear(0, training=True)),
    "running-mean": lambda: (linear(0), linear(0, mean=1.0)),
    "buffer": lambda: (linear(0, buffer=1.0), linear(0, buffer=2.0)),
    "module-attribute": lambda: (linear(0, factor=1.0), linear(0, factor=2.0)),
    "hook": lambda: (linear(0), linear(0, hook=Thing())),
    "hook-by-code": lambda: (linear(0, hook=lambda m, i, o: o), linear(0, hook=lambda m, i, o: 2 * o)),
    "pre-hook": lambda: (linear(0), linear(0, pre_hook=Thing())),
    "box": lambda: (Holder(1), Holder(2)),
}
BOXES: dict[str, Callable[[], tuple[BlackBoxFunction, BlackBoxFunction]]] = {
    "attribute-box": lambda: (Domain(2.0), Domain(5.0)),
    "slots": lambda: (Slots(1.0), Slots(2.0)),
    "private-slots": lambda: (Slots(1.0, 1.0), Slots(1.0, 2.0)),
    "parents-slots": lambda: (MoreSlots(1.0, 3.0), MoreSlots(2.0, 3.0)),
    "own-slots": lambda: (MoreSlots(1.0, 3.0), MoreSlots(1.0, 4.0)),
    "wrapped": lambda: (Around(Holder(1), 0), Around(Holder(2), 0)),
    "beside-wrapped": lambda: (Around(Holder(1), 0), Around(Holder(1), 1)),
    "another-box": lambda: (Around(Holder(1), Holder(3)), Around(Holder(1), Holder(4))),
    "fallback": lambda: (Fallback(Holder(1), 0.0), Fallback(Holder(1), -0.0)),
    "subclass-of-adapter": lambda: (Program(1.0), Program(2.0)),
    "method-over-adapter": lambda: (Program(1.0), TwiceProgram(1.0)),
    "hook-of-module": lambda: (
        TorchModule(linear(0), X, Y), TorchModule(linear(0, hook=lambda m, i, o: 2 * o), X, Y)
    ),
    "callable": lambda: (
        from_callable(closure(1), inputs=X, outputs=Y), from_callable(closure(2), inputs=X, outputs=Y)
    ),
}  # fmt: skip


def pairs() -> dict[str, tuple[BlackBoxFunction, BlackBoxFunction]]:
    """All pairs of boxes, made anew."""
    parts = {f"part-{name}": tuple(map(Holder, make())) for name, make in PARTS.items()}
    return parts | {name: make() for name, make in BOXES.items()}  # pyright: ignore[reportReturnType]


def test_two_boxes_that_differ_in_one_thing_never_share_answers():
    wrong = [name for name, (one, other) in pairs().items() if identity(one) == identity(other)]
    assert not wrong


def identities() -> dict[str, list[str]]:
    return {name: [identity(box) for box in pair] for name, pair in pairs().items()}


def test_equal_boxes_made_twice_share_answers():
    known, again = identities(), identities()
    assert [name for name in known if known[name] != again[name]] == []


@pytest.mark.slow
def test_equal_boxes_of_two_processes_share_answers():
    code = (
        "import json\nfrom tests.blackbox.wrappers.test_identity import identities\n"
        "print(json.dumps(identities()))"
    )
    other = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=other, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    known, elsewhere = identities(), json.loads(done.stdout)
    assert [name for name in known if known[name] != elsewhere[name]] == []


def test_sets_and_attributes_have_no_order():
    names = ["alpha", "beta", "gamma"]
    assert identity(Holder(set(names))) == identity(Holder(set(names[::-1])))
    assert identity(Holder(Thing(a=1, b=2))) == identity(Holder(Thing(b=2, a=1)))


# What a file of one's own says


def module(folder: Path, text: str, name: str = "model_of_mine") -> Any:
    """A module of this name in a folder, imported anew."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


MODEL = '''
import math
import numpy as np
from blackbox import ArraySpec, BlackBoxFunction

FACTOR = 2.0
TABLE = {"a": 1}


def helper(x):
    return FACTOR * x


def indirect(x):
    return helper(x)


class Parent(BlackBoxFunction, abstract=True):
    power = 1.0

    def more(self, x):
        return x**self.power


class Model(Parent):
    inputs = (ArraySpec("x", (1,)),)
    outputs = (ArraySpec("y", (1,)),)

    def evaluate(self, x):
        """Words."""
        return self.more(indirect(x)) + TABLE["a"] + len([x for y in x if y > math.inf])
'''
EDITS = {
    "global": ("FACTOR = 2.0", "FACTOR = 3.0"),
    "helper": ("FACTOR * x", "FACTOR + x"),
    "table": ('"a": 1', '"a": 2'),
    "parents-attribute": ("power = 1.0", "power = 2.0"),
    "parents-method": ("x**self.power", "x*self.power"),
    "method": ("y > math", "y < math"),
    "constant": ("return helper(x)", "return helper(x) + 0"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_modules_of_one_name_in_two_projects_are_not_taken_for_each_other(tmp_path, edit):
    before, after = EDITS[edit]
    first = module(tmp_path / "one", MODEL).Model()
    x, path = np.array([[3.0]]), tmp_path / "answers"
    truth = first(x)
    np.testing.assert_array_equal(Cached(first, path)(x), truth)
    second = module(tmp_path / "two", MODEL.replace(before, after)).Model()
    assert identity(first) != identity(second)
    np.testing.assert_array_equal(Cached(second, path)(x), second(x))


def test_the_same_code_elsewhere_and_with_other_comments_keeps_its_answers(tmp_path):
    first = identity(module(tmp_path / "one", MODEL).Model())
    text = MODEL.replace('"""Words."""', '"""Other words."""\n        # and a comment\n')
    text = text.replace("TABLE = ", "\n\nUNUSED = object()\nTABLE = ")
    assert identity(module(tmp_path / "two", text).Model()) == first


def test_a_module_that_is_imported_inside_of_a_function_counts_with_its_file(tmp_path, monkeypatch):
    model = MODEL.replace("return helper(x)", "import inner_of_mine\n    return inner_of_mine.f(x)")
    found = []
    for text in ("def f(x): return x", "def f(x): return 2 * x"):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "inner_of_mine.py").write_text(text)
        importlib.invalidate_caches()
        found.append(identity(module(tmp_path, model).Model()))
    assert found[0] != found[1]


def test_a_reassigned_class_attribute_is_another_box(tmp_path):
    model = module(tmp_path, MODEL)
    x, path = np.array([[3.0]]), tmp_path / "answers"
    first = Cached(model.Model(), path)(x)
    model.Parent.power = 2.0
    np.testing.assert_array_equal(Cached(model.Model(), path)(x), model.Model()(x))
    model.Parent.power = 1.0
    again = Cached(model.Model(), path)
    np.testing.assert_array_equal(again(x), first)
    assert again.ledger.rows_run == 0


def test_a_file_that_the_box_holds_as_a_path_counts_with_its_content(tmp_path):
    mesh = tmp_path / "mesh.txt"
    found = []
    for text in ("one", "two", "one"):
        mesh.write_text(text)
        found.append(identity(Holder(mesh)))
    assert found[0] == found[2] != found[1]


# What is refused


def handles(folder: Path) -> dict[str, Any]:
    return {
        "file": (folder / "log").open("w"),
        "generator": (one for one in [1]),
        "connection": sqlite3.connect(":memory:"),
        "local": threading.local(),
        "view": memoryview(b"a"),
        "scripted": torch.jit.script(nn.Linear(1, 1)),
        "meta": torch.ones(1, device="meta"),
    }


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_has_state_that_is_not_seen_is_refused_with_a_mend(tmp_path):
    all_of_them = handles(tmp_path)
    for name, handle in all_of_them.items():
        for part in (handle, [handle], {"a": handle}, Thing(a=handle), functools.partial(closure, handle)):
            with pytest.raises(ConfigurationError, match=r"Holder\.part.*attribute 'identity'"):
                identity(Holder(part))
        box = Holder(handle)
        box.identity = f"with {name}"  # pyright: ignore[reportAttributeAccessIssue]
        assert name in identity(box)
        thing = Thing(a=handle, identity="a") if name != "scripted" else Thing(identity="a")
        other = Thing(a=handle, identity="b")
        assert identity(Holder(thing)) != identity(Holder(other))
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ConfigurationError, match="nested too deep"):
        identity(Holder(nested))
    all_of_them["file"].close()
    all_of_them["connection"].close()


OPEN = """
from blackbox import ArraySpec, BlackBoxFunction

LOG = open(__file__)


class Model(BlackBoxFunction):
    inputs = (ArraySpec("x", (1,)),)
    outputs = (ArraySpec("y", (1,)),)

    def evaluate(self, x):
        LOG.read()
        return x
"""


def test_a_handle_that_the_code_names_is_refused_by_its_name(tmp_path):
    model = module(tmp_path, OPEN)
    with pytest.raises(
        ConfigurationError, match=r"Model\.evaluate, global 'LOG' of Model\.evaluate.*identity"
    ):
        identity(model.Model())
    model.Model.identity = "mine"
    assert "mine" in identity(model.Model())
    model.LOG.close()


def test_a_lock_and_a_logger_change_no_answer():
    import logging

    assert identity(Holder(threading.Lock())) == identity(Holder(threading.Lock()))
    assert identity(Holder(logging.getLogger("a"))) == identity(Holder(logging.getLogger("a")))


# A box that changes while it is cached


class Counting(BlackBoxFunction):
    """Counts its rows, and prepares something at its first."""

    inputs, outputs = X, Y
    everywhere = 0

    def __init__(self, k: float) -> None:
        self.k, self.calls = k, 0
        self.table = np.zeros(3)
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        self.calls += len(x)
        if not hasattr(self, "prepared"):
            self.prepared = threading.local()
        type(self).everywhere += 1
        return self.k * x + self.table.sum()


def test_what_a_box_changes_itself_keeps_its_answers(tmp_path):
    x = np.arange(4.0)[:, None]
    box = Cached(Counting(2.0), tmp_path / "answers", block=1)
    np.testing.assert_array_equal(box(x[:2]), 2 * x[:2])
    np.testing.assert_array_equal(box(x), 2 * x)
    assert (box.ledger.rows_run, box.ledger.rows_cached) == (4, 2)
    Counting.everywhere = 0
    again = Cached(Counting(2.0), tmp_path / "answers")
    np.testing.assert_array_equal(again(x), 2 * x)
    assert again.ledger.rows_run == 0


CHANGES: dict[str, Callable[[Counting], object]] = {
    "attribute": lambda box: setattr(box, "k", 3.0),
    "in-place": lambda box: np.put(box.table, 1, 1.0),
    "new": lambda box: setattr(box, "evaluate_rows", lambda x: 5 * x),
    "class": lambda box: setattr(type(box), "evaluate_rows", lambda self, x: 7 * x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_box_that_somebody_changes_is_another_one_from_then_on(tmp_path, change):
    class Mine(Counting):
        pass

    x = np.arange(1.0, 4.0)[:, None]
    box = Cached(Mine(2.0), tmp_path / "answers")
    first = box(x)
    CHANGES[change](box.box)  # pyright: ignore[reportArgumentType]
    with pytest.warns(RuntimeWarning, match="has changed since its last call"):
        found = box(x)
    truth = box.box(x)
    np.testing.assert_array_equal(found, truth)
    assert (found != first).all()
    assert box.ledger.rows_cached == 0


def test_a_box_that_is_changed_and_changed_back_has_its_first_answers_again(tmp_path):
    x = np.arange(1.0, 4.0)[:, None]
    box = Cached(Counting(2.0), tmp_path / "answers")
    first = box(x)
    with pytest.warns(RuntimeWarning, match=r"\(\.k\)"):
        for k in (3.0, 2.0):
            box.box.k = k  # pyright: ignore[reportAttributeAccessIssue]
            np.testing.assert_array_equal(box(x), k * x)
    np.testing.assert_array_equal(box(x), first)
    assert (box.ledger.rows_run, box.ledger.rows_cached) == (6, 6)


def test_a_handle_that_somebody_gives_a_box_is_refused_and_nothing_is_answered(tmp_path):
    box = Cached(Counting(2.0), tmp_path / "answers")
    box(np.ones((1, 1)))
    box.box.extra = threading.local()  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"Counting\.extra"):
            box(np.ones((1, 1)))


def test_weights_that_are_changed_in_place_are_noticed(tmp_path):
    box = Cached(TorchModule(linear(0), X, Y), tmp_path / "answers")
    x = torch.ones(1, 1)
    first = box(x)
    assert torch.equal(box(x), first)
    with torch.no_grad():
        box.box.module[0].bias += 1.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(RuntimeWarning, match="has changed"):
        assert torch.equal(box(x), box.box(x)) and not torch.equal(box(x), first)
