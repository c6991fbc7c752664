"""Names of a package are those of its stub, and imported when they are first used."""

import sys
from importlib import import_module

import pytest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a name and a module, none of which is imported with it."""
    folder = tmp_path / "pumps"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from blackbox.faces import named_by_stub\n__getattr__, __all__ = named_by_stub(__name__)\n"
    )
    (folder / "__init__.pyi").write_text(
        "from pumps import parts as parts\nfrom pumps.wheel import Wheel as Wheel\nfrom os import path\n"
    )
    (folder / "wheel.py").write_text("class Wheel: ...\n")
    (folder / "parts.py").write_text("COUNT = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("pumps")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pumps"]:
        del sys.modules[name]


def test_what_nobody_asks_for_is_not_imported(package):
    assert package.__all__ == ["Wheel"]
    assert "pumps.wheel" not in sys.modules
    assert package.Wheel is import_module("pumps.wheel").Wheel
    assert "pumps.parts" not in sys.modules
    assert package.parts.COUNT == 3


def test_a_name_that_is_not_there_is_refused(package):
    with pytest.raises(AttributeError, match=r"module 'pumps' has no attribute 'path'$"):
        _ = package.path


@pytest.mark.parametrize("name", ["blackbox", "tasks", "tasks.configuration", "tasks.report"])
def test_every_name_of_a_stub_is_there(name):
    face = import_module(name)
    assert len(face.__all__) > 10
    for part in face.__all__:
        getattr(face, part)
