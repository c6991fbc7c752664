"""What a cache follows beyond a box's own file: a box, a change, and answers that are the box's after it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blackbox import ArraySpec, Cached, ConfigurationError
from blackbox.adapters import TorchModule, from_callable
from blackbox.wrappers import Parallel
from blackbox.wrappers.identity import identity

X, Y = (ArraySpec("x", (1,)),), (ArraySpec("y", (1,)),)
ONE = np.array([[7.0]])

# Modules of the user's, in each of which {k} is what is changed.
FILES = {
    "hlp": "K = {k}\nOTHER = 1.0\nLOG = open(__file__)\ndef g(x): return x * K\nclass C:\n    k = {k}\n",
    "inner": "def g(x):\n    import hlp\n    return hlp.g(x)\n",
    "deep": "import inner\ndef g(x): return inner.g(x)\n",
    "lazy": "def __getattr__(name):\n    import hlp\n    return getattr(hlp, name)\n",
    "table": "import hlp\nT = {{'g': hlp.g}}\n",
    "pick": "def pick(module, name): return getattr(module, name)\n",
    "pk.__init__": "",
    "pk.sub": "K = {k}\ndef g(x): return x * K\n",
    "alias": "def fast(x): return x\ndef slow(x): return 22 * x\n"
    "solve = slow if {k} > 1 else fast\ndef both(x): return fast(x) + slow(x)\n",
}
# Names of a box, and what its function does.
FOLLOWED = {
    "import inside": ("", "import hlp\nreturn hlp.g(x)"),
    "from inside": ("", "from hlp import g\nreturn g(x)"),
    "value inside": ("", "from hlp import K as q\nreturn q * x"),
    "import of a submodule inside": ("", "import pk.sub as s\nreturn s.g(x)"),
    "submodule inside, dotted": ("", "import pk.sub\nreturn pk.sub.g(x)"),
    "import inside of a helper": ("import inner", "return inner.g(x)"),
    "import inside of a helper that is imported inside": ("", "import inner\nreturn inner.g(x)"),
    "two modules further": ("", "import deep\nreturn deep.g(x)"),
    "getattr": ("import hlp", "return getattr(hlp, 'g')(x)"),
    "getattr by a variable": ("import hlp\nNAME = 'g'", "return getattr(hlp, NAME)(x)"),
    "getattr inside": ("", "import hlp\nreturn getattr(hlp, 'K') * x"),
    "getattr of a submodule": ("import pk.sub", "return getattr(pk.sub, 'K') * x"),
    "vars": ("import hlp", "return vars(hlp)['K'] * x"),
    "__dict__": ("import hlp", "return hlp.__dict__['K'] * x"),
    "attrgetter": ("import hlp, operator", "return operator.attrgetter('C.k')(hlp) * x"),
    "module handed on": ("import hlp, pick", "return pick.pick(hlp, 'g')(x)"),
    "module in a list": ("import hlp\nL = [hlp]", "return L[0].g(x)"),
    "module as a default": ("import hlp", "return f(x)", "def f(x, m=hlp): return m.g(x)"),
    "module under another name": ("import hlp", "m = hlp\nreturn m.g(x)"),
    "import_module": ("import importlib", "return importlib.import_module('hlp').g(x)"),
    "import_module by its name": ("from importlib import import_module", "return import_module('hlp').g(x)"),
    "import_module, getattr": ("import importlib", "return getattr(importlib.import_module('hlp'), 'K') * x"),
    "__import__": ("", "return __import__('hlp').g(x)"),
    "sys.modules": ("import hlp, sys", "return sys.modules['hlp'].g(x)"),
    "module's __getattr__": ("import lazy", "return lazy.g(x)"),
    "table of functions": ("import table", "return table.T['g'](x)"),
    "globals": ("from hlp import *", "return globals()['K'] * x"),
    "eval of a text": ("from hlp import *", "return eval('K * x')"),
    "exec of a text": ("", "exec('import hlp; hlp.K = hlp.K')\nimport hlp\nreturn hlp.g(x)"),
    "another name for one of two": ("import alias", "alias.both(x)\nreturn alias.solve(x)"),
}
REFUSED = {
    "eval": ("T = 'hlp.g(x)'", "return eval(T)"),
    "eval with names": ("", "return eval('K * x', {'K': 1.0, 'x': x})"),
    "exec of a file": ("", "ns = {}\nexec(open('hlp.py').read(), ns)\nreturn ns['g'](x)"),
    "globals by a variable": ("N = 'K'\nK = 1.0", "return globals()[N] * x"),
    "import_module by a variable": ("import importlib\nN = 'hlp'", "return importlib.import_module(N).g(x)"),
    "sys.modules by a variable": ("import sys", "return sys.modules[__name__].K * x"),
    "eval under another name": ("E = eval", "return E('x')"),
    "import_module in a table": (
        "import importlib\nT = [importlib.import_module]",
        "return T[0]('hlp').g(x)",
    ),
}
# What is no such thing.
RIGHT = {
    "model.eval": ("class M:\n    def eval(self): return 1.0", "return M().eval() * x"),
    "model.modules": ("class M:\n    modules = [1.0]", "return M().modules[0] * x"),
    "own eval": ("def eval(x): return x", "return eval(x)"),
    "getattr of an object": ("import hlp", "return getattr(x, 'T') * hlp.OTHER"),
    "is it loaded": ("import sys", "return x * ('numpy' in sys.modules)"),
    "import of an installed package": ("", "import scipy.special as s\nreturn s.expit(x)"),
    "optional": ("", "try:\n    import not_there_at_all as n\nexcept ImportError:\n    n = None\nreturn x"),
}


@pytest.fixture(autouse=True)
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the test's modules, which are none of other tests."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield
    forget()


def forget() -> None:
    """As a new process would have them: no module of ours is loaded."""
    for name in [*FILES, "pk", "model_that_follows"]:
        inside = vars(sys.modules.pop(name, ModuleType("none")))
        if "LOG" in inside:
            inside["LOG"].close()
    importlib.invalidate_caches()


def box(folder: Path, case: tuple[str, ...], k: float) -> Any:
    """The case's function as a box, in new modules."""
    forget()
    for name, text in FILES.items():
        path = folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(k=k))
    top, body, *more = case
    lines = [top, *more, "def evaluate(x):", *(f"    {line}" for line in body.splitlines())]
    (folder / "model_that_follows.py").write_text("\n".join(lines) + "\n")
    function = importlib.import_module("model_that_follows").evaluate
    return from_callable(function, inputs=X, outputs=Y)


@pytest.mark.quick_cases(7)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("case", FOLLOWED)
def test_another_file_is_another_box_and_the_same_is_the_same(tmp_path, case):
    path = tmp_path / "answers"
    first = Cached(box(tmp_path, FOLLOWED[case], 1.0), path)
    before = first(ONE)
    second = Cached(box(tmp_path, FOLLOWED[case], 22.0), path)
    found = second(ONE)
    np.testing.assert_array_equal(found, second.box(ONE))
    assert (found != before).all()
    again = Cached(box(tmp_path, FOLLOWED[case], 1.0), path)
    np.testing.assert_array_equal(again(ONE), before)
    np.testing.assert_array_equal(again(ONE), before)
    assert again.ledger.rows_run == 0
    once_more = Cached(again.box, path)  # with all modules that it imports loaded
    np.testing.assert_array_equal(once_more(ONE), before)
    assert again.ledger.rows_run == 0


# Changes of a process that has loaded them; the names that a star imported stay what they were.
@pytest.mark.quick_cases(14)
@pytest.mark.filterwarnings("ignore:.*has changed since:RuntimeWarning")
@pytest.mark.parametrize("case", [name for name in FOLLOWED if "*" not in FOLLOWED[name][0]])
@pytest.mark.parametrize("anew", [False, True], ids=["one-cache", "another-cache"])
def test_what_is_set_in_a_module_that_is_loaded_is_followed(tmp_path, case, anew):
    inner, path = box(tmp_path, FOLLOWED[case], 1.0), tmp_path / "answers"
    cached = Cached(inner, path)
    before = cached(ONE)
    for name in ("hlp", "pk.sub", "alias"):
        module = sys.modules.get(name) or ModuleType("none")
        for changed, value in {"K": 22.0, "solve": getattr(module, "slow", None)}.items():
            if hasattr(module, changed):
                setattr(module, changed, value)
        if hasattr(module, "C"):
            module.C.k = 22.0
    found = (Cached(inner, path) if anew else cached)(ONE)
    np.testing.assert_array_equal(found, inner(ONE))
    assert (found != before).all()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_with_a_mend(tmp_path, case):
    inner = box(tmp_path, REFUSED[case], 1.0)
    with pytest.raises(ConfigurationError, match=r"may use anything.*'identity'"):
        Cached(inner, tmp_path / "answers")
    inner.identity = "mine"
    Cached(inner, tmp_path / "answers")


@pytest.mark.parametrize("case", RIGHT)
def test_what_only_looks_so_is_neither_refused_nor_asked_again(tmp_path, case):
    path = tmp_path / "answers"
    for _ in range(2):
        cached = Cached(box(tmp_path, RIGHT[case], 1.0), path)
        for _ in range(2):
            np.testing.assert_array_equal(cached(ONE), cached.box(ONE))
    assert cached.ledger.rows_run == 2  # both of the box itself, in this test


def test_a_function_put_in_the_place_of_an_installed_one_is_followed(tmp_path, monkeypatch):
    inner, path = box(tmp_path, ("import numpy as np", "return np.sin(x)"), 1.0), tmp_path / "answers"
    Cached(inner, path)(ONE)
    monkeypatch.setattr(np, "sin", lambda x: 0 * x)
    np.testing.assert_array_equal(Cached(inner, path)(ONE), 0 * ONE)


def test_a_part_of_a_module_that_is_not_used_keeps_the_answers(tmp_path):
    case = ("import hlp", "return hlp.g(x)")
    first = identity(box(tmp_path, case, 1.0))
    sys.modules["hlp"].OTHER = 5.0  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["hlp"].C.k = 5.0
    assert identity(box_of_now()) == first


def box_of_now() -> Any:
    function = sys.modules["model_that_follows"].evaluate
    return from_callable(function, inputs=X, outputs=Y)


# Weights


def one_weight() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer


WEIGHTS: dict[str, Callable[[nn.Linear], object]] = {
    "data": lambda layer: layer.weight.data.mul_(2),
    "data-assigned": lambda layer: setattr(layer.weight, "data", torch.full((1, 1), 3.0)),
    "numpy": lambda layer: layer.weight.detach().numpy().__imul__(2),
    "detached": lambda layer: layer.weight.detach().mul_(2),
    "no-grad": lambda layer: torch.no_grad()(lambda: layer.weight.mul_(2))(),
    "loaded": lambda layer: layer.load_state_dict({"weight": torch.full((1, 1), 5.0)}),
    "storage": lambda layer: layer.weight.untyped_storage().copy_(torch.full((1,), 4.0).untyped_storage()),
    "parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.full((1, 1), 6.0))),
}


@pytest.mark.filterwarnings("ignore:.*has changed since:RuntimeWarning")
@pytest.mark.parametrize("change", WEIGHTS)
@pytest.mark.parametrize("anew", [False, True], ids=["one-cache", "another-cache"])
def test_weights_are_followed_however_they_are_written(tmp_path, change, anew):
    inner, path = TorchModule(one_weight(), X, Y), tmp_path / "answers"
    cached = Cached(inner, path)
    x = torch.ones(1, 1)
    assert torch.equal(cached(x), x)
    WEIGHTS[change](inner.module)  # pyright: ignore[reportArgumentType]
    found = (Cached(inner, path) if anew else cached)(x)
    assert torch.equal(found, inner(x)) and not torch.equal(found, x)


QUICK = ("data", "storage")  # a pool of processes each


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in WEIGHTS]
)
def test_workers_follow_weights_however_they_are_written(change):
    from tests.blackbox.wrappers.test_parallel import processes

    inner = TorchModule(one_weight(), X, Y)
    with Parallel(inner, processes) as box:
        x = torch.ones(1, 1)
        assert torch.equal(box(x), x)
        WEIGHTS[change](inner.module)  # pyright: ignore[reportArgumentType]
        assert torch.equal(box(x), inner(x)) and not torch.equal(box(x), x)


def test_a_file_that_is_written_twice_in_a_moment_is_read_twice(tmp_path):
    """Two contents of one size within one tick of the file system's clock have one state to `os.stat`."""
    from tests.blackbox.wrappers.test_identity import Holder

    path, found = tmp_path / "mesh.txt", set()
    for number in range(50):
        path.write_text(f"{number:03}")
        found.add(identity(Holder(path)))
    assert len(found) == 50
