"""Every public name has its place in the reference."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
PACKAGES = (
    "blackbox",
    "blackbox.adapters",
    "blackbox.adapters.um_bridge",
    "blackbox.conformance",
    "blackbox.wrappers",
    "simulators.wake_flow",
    "tasks",
    "tasks.denoised_smoothing",
    "tasks.denoised_smoothing.certification",
    "tasks.denoised_smoothing.classifiers",
    "tasks.image_classification",
    "tasks.image_classification.data",
    "tasks.image_classification.networks",
    "tasks.report",
    "tasks.wake_flow",
    "zo",
    "zo.box_gradient",
    "zo.errors",
    "zo.estimators",
    "zo.evaluators",
    "zo.jax",
    "zo.pruning",
    "zo.tangents",
)


def found(place: str) -> object:
    module, _, name = place.rpartition(".")
    return getattr(import_module(module), name)


@pytest.fixture(scope="module")
def documented() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    return re.findall(r"^\.\. (?:auto|py:)(?:class|function|exception|data):: ([\w.]+)$", text, re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package, documented):
    objects = {id(found(place)) for place in documented}
    module = import_module(package)
    missing = [
        name
        for name in module.__all__
        if not hasattr(getattr(module, name), "__path__")  # a subpackage has a page of its own
        and id(getattr(module, name)) not in objects
        and f"{package}.{name}" not in documented
        and type(getattr(module, name)).__name__ != "module"
    ]
    assert not missing, f"docs/reference does not have {package}: {', '.join(missing)}"


def test_the_reference_names_nothing_twice(documented):
    assert len(documented) == len(set(documented))
    for place in documented:
        found(place)


PROGRAMS = ("toy.py", "toy_cli.py")  # which tests start in folders of their own, where `tests` is no package


def test_tests_import_what_users_import(documented):
    """Or whoever renames a module that users are not shown changes tests of behaviour; see `tests.inside`."""
    roots = {package.partition(".")[0] for package in PACKAGES} | {"simulators"}
    known = {place.rpartition(".")[0] for place in documented} | {*PACKAGES} | roots
    known |= {f"{package}.errors" for package in roots}
    tests = Path(__file__).parent
    wrong = []
    for path in sorted(tests.rglob("*.py")):
        if path.name in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            if node.module.partition(".")[0] in roots:
                inner = [f"{node.module}.{name.name}" for name in node.names]
                modules = [place for place in inner if is_module(tests.parent, place)]
                wrong += [f"{path.relative_to(tests)}: {place}" for place in {node.module, *modules} - known]
    assert not wrong, "give these a name in tests/inside.py:\n" + "\n".join(wrong)


def is_module(root: Path, place: str) -> bool:
    path = root.joinpath(*place.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()
