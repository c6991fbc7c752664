"""Every public name has its place in the reference."""

from __future__ import annotations

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
    "tasks.applications.denoised_smoothing",
    "tasks.applications.denoised_smoothing.certification",
    "tasks.applications.denoised_smoothing.classifiers",
    "tasks.applications.image_classification",
    "tasks.applications.image_classification.data",
    "tasks.applications.image_classification.networks",
    "tasks.methods",
    "tasks.report",
    "zo.execution",
    "tasks.applications.wake_flow",
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
