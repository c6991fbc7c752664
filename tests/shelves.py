"""Shelves: each is taken out of a copy of the packages in turn, and what is left of the tests is run there.

    python -m tests.shelves                                             # all of them, as `make test-shelves`
    python -m tests.shelves zo.tangents.models.mesh -- tests/zo/test_units.py
    python -m tests.shelves --lines                                     # how large core and shelves are

The table of shelves is the contract "Nobody imports a shelf" of `pyproject.toml`. A test goes with a shelf if
its file imports it or lies in a folder of its name; or if the test itself, or a function of its file that it
uses, names what the packages' stubs or tables have from there.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("blackbox", "simulators", "zo", "tasks")
CORE = [f"tests/{name}" for name in "blackbox zo oracles gradients networks simulators tasks".split()]
VARIABLE = "SHELF_TAKEN_OUT"
PLACE = re.compile(rb"""["'][\w.]*:\w+["']""")  # of a name: its module and itself, in quotes
# what a test may call a shelf by that no stub and no table has: a method of runs, a kind of `blackbox new`
WORDS = {"zo.tangents.models.student": {"student"}, "blackbox.adapters.hosted": {"hosted"}}


def shelves() -> list[str]:
    """The modules of all shelves, by the table that `lint-imports` reads."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return next(contract["protected_modules"] for contract in contracts if contract["type"] == "protected")


def inside(module: str | None, shelf: str) -> bool:
    """Whether a module is a shelf, or lies in it."""
    return module is not None and f"{module}.".startswith(f"{shelf}.")


@cache
def files() -> list[Path]:
    """The files of all modules and stubs of the packages."""
    found = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py*")]
    return [file for file in found if file.suffix in (".py", ".pyi")]


@cache
def tree_of(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_bytes())


def modules() -> dict[Path, ast.Module]:
    """All modules and stubs of the packages, by their files."""
    return {file: tree_of(file) for file in files()}


@cache
def tables() -> dict[Path, list[ast.Dict]]:
    """The dictionaries that modules of the packages write out, by their files: of those that have a place."""
    with_place = [file for file in files() if file.suffix == ".py" and PLACE.search(file.read_bytes())]
    return {
        file: [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Dict)] for file in with_place
    }


@cache
def names_of(shelf: str) -> re.Pattern[str]:
    """What names a shelf in a test: public names, and names of tables in quotes."""
    own = ROOT.joinpath(*shelf.split("."))
    names, quoted = {shelf}, set(WORDS.get(shelf, ()))
    for file in (file for file in files() if file.suffix == ".pyi" and not file.is_relative_to(own)):
        for node in tree_of(file).body:
            if isinstance(node, ast.ImportFrom):
                names |= {part.name for part in node.names if inside(node.module, shelf)}
    for file, nodes in tables().items():
        for node in nodes if not file.is_relative_to(own) else ():
            quoted |= set(_registered(node, shelf, names))
    words = [rf"\b{re.escape(name)}\b" for name in names]
    return re.compile("|".join([*words, *(rf"""["']{re.escape(name)}["']""" for name in quoted)]))


def _registered(table: ast.Dict, shelf: str, names: set[str]) -> Iterator[str]:
    """The names in a table whose places `module:Name` are in a shelf, or name what a stub has from there."""
    for key, value in zip(table.keys, table.values, strict=True):
        place = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
        if isinstance(key, ast.Constant) and isinstance(place, ast.Constant):
            module, colon, name = str(place.value).partition(":")
            if colon and (inside(module, shelf) or name in names):
                yield str(key.value)


@cache
def goes_with(path: Path, shelf: str) -> bool:
    """Whether a file of tests, or of what tests import, goes with a shelf."""
    place = path.relative_to(ROOT)
    mirrored = Path("tests", *shelf.split("."))
    if place.is_relative_to(mirrored) or place == mirrored.with_name(f"test_{mirrored.name}.py"):
        return True
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import) and any(inside(part.name, shelf) for part in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if any(
                inside(node.module, shelf)
                or inside(f"{node.module}.{part.name}", shelf)
                or (node.module.partition(".")[0] in PACKAGES and names_of(shelf).fullmatch(part.name))
                for part in node.names
            ):
                return True
            helpers = [ROOT.joinpath(*f"{node.module}.{part.name}".split(".")) for part in node.names]
            for helper in (ROOT.joinpath(*node.module.split(".")), *helpers):
                file = helper.with_suffix(".py")
                if node.module.startswith("tests.") and file.is_file() and goes_with(file, shelf):
                    return True
    return False


@cache
def functions_with(path: Path, shelf: str) -> frozenset[str]:
    """The functions, classes and values of a file that name a shelf, or use one of its that does."""
    source = path.read_text(encoding="utf-8")
    parts: dict[str, str] = {}
    for node in ast.parse(source).body:
        start = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", ()))])
        text = "\n".join(source.splitlines()[start - 1 : node.end_lineno])
        targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
        targets = [target for target in targets if isinstance(target, ast.Name)]
        for name in [getattr(node, "name", None), *(target.id for target in targets)]:
            if name is not None:
                parts[name] = text
    found = {name for name, text in parts.items() if names_of(shelf).search(text)}
    while more := {
        name
        for name, text in parts.items()
        if name not in found and any(re.search(rf"\b{other}\b", text) for other in found)
    }:
        found |= more
    return frozenset(found)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out files that go with the shelf that was taken out."""
    if collection_path.suffix != ".py":
        return None
    return goes_with(collection_path, os.environ[VARIABLE]) or None


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Leave out tests that name the shelf that was taken out."""
    shelf = os.environ[VARIABLE]
    left = [item for item in items if _names(item, shelf)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def _names(item: Any, shelf: str) -> bool:
    case = getattr(item, "callspec", None)
    shown = f"{item.name} {case.params if case is not None else ''}"
    function = item.originalname if case is not None else item.name
    functions = functions_with(item.path, shelf)
    if case is None or function not in functions:
        return function in functions or (case is not None and names_of(shelf).search(shown) is not None)
    # of a test with cases those go that show the name; all, where none shows it
    siblings = names_of(shelf).search(shown) is not None
    return siblings or not any(names_of(shelf).search(str(value)) for value in _cases(item))


def _cases(item: Any) -> list[Any]:
    return [mark.args for mark in item.iter_markers("parametrize")]


def check(shelf: str, arguments: list[str]) -> int:
    """Pytest's status on a copy without a shelf."""
    with tempfile.TemporaryDirectory(prefix="shelf-") as folder:
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listing, cwd=ROOT, text=True).split("\0"):
            if (ROOT / name).is_file():
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(folder, name))
        place = Path(folder, *shelf.split("."))
        shutil.rmtree(place) if place.is_dir() else place.with_suffix(".py").unlink()
        files = [] if any(word.startswith("tests") for word in arguments) else CORE
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.shelves", *arguments, *files]
        settings = os.environ | {VARIABLE: shelf, "PYTHONPATH": folder}
        return subprocess.run(command, cwd=folder, env=settings).returncode


def lines() -> str:
    """The lines of the packages' modules, of the core and of each shelf."""
    counts = dict.fromkeys([*(f"core of {package}" for package in PACKAGES), *shelves()], 0)
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            shelf = next((shelf for shelf in shelves() if inside(module, shelf)), f"core of {package}")
            counts[shelf] += len(file.read_text(encoding="utf-8").splitlines())
    core = sum(counts[f"core of {package}"] for package in PACKAGES)
    counts |= {"core": core, "shelves": sum(counts.values()) - core}
    return "\n".join(f"{count:7,} {name}" for name, count in counts.items())


def main() -> int:
    """1 if the tests fail without one of the shelves."""
    if sys.argv[1:] == ["--lines"]:
        print(lines())
        return 0
    words, _, arguments = " ".join(sys.argv[1:]).partition("--")
    chosen = words.split() or shelves()
    unknown = set(chosen) - set(shelves())
    if unknown:
        print(f"Expected shelves, of {', '.join(shelves())}, got {', '.join(sorted(unknown))}.")
        return 2
    failed = []
    for shelf in chosen:
        print(f"Without {shelf}:", flush=True)
        if check(shelf, arguments.split()) != 0:
            failed.append(shelf)
    print(f"The tests fail without {', '.join(failed)}." if failed else "The tests pass without each.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
