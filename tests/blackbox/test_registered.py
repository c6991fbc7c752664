"""Registration: a shelf that was taken out leaves nothing, and one that misses something itself is told."""

from __future__ import annotations

import sys

import pytest

from blackbox.registered import is_there, registered


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shelved_here").mkdir()
    (tmp_path / "shelved_here" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "shelved_here", raising=False)
    return tmp_path / "shelved_here"


def test_what_was_taken_out_is_left_out(shelf):
    (shelf / "pumps.py").write_text("Pump = 3")
    places = {
        "pump": "shelved_here.pumps:Pump",
        "fan": "shelved_here.fans:Fan",
        "wheel": "shelved_here.mills.wheel:Wheel",
    }
    assert registered("no.such.group", places) == {"pump": 3}
    assert registered("no.such.group", places, ["pump"]) == {}
    assert is_there("shelved_here.pumps") and not is_there("shelved_here.fans")


def test_a_shelf_that_misses_something_itself_says_so(shelf):
    (shelf / "hungry.py").write_text("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registered("no.such.group", {"pump": "shelved_here.hungry:Pump"})
