"""Shelves: what `lint-imports` cannot see, since a package's stub gives their names."""

from __future__ import annotations

import ast

import pytest

from tests.shelves import ROOT, goes_with, inside, modules, names_of, shelves

OF_SHELVES = {
    "tasks.command.hosting": "blackbox.adapters.hosted"
}  # commands, which are read when they are called


def test_every_shelf_is_there():
    for shelf in shelves():
        place = ROOT.joinpath(*shelf.split("."))
        assert place.is_dir() or place.with_suffix(".py").is_file(), shelf


@pytest.mark.slow
@pytest.mark.parametrize("shelf", shelves())
def test_no_module_needs_a_shelf_to_be_imported(shelf):
    names, wrong = names_of(shelf), []
    for file, tree in modules().items():
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if file.suffix == ".pyi" or inside(module, shelf) or OF_SHELVES.get(module) == shelf:
            continue
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("blackbox", "zo", "tasks")
            ):
                wrong += [f"{module}: {part.name}" for part in node.names if names.fullmatch(part.name)]
    assert not wrong


def test_tests_go_with_the_shelves_that_they_import():
    mesh, equation = "zo.tangents.models.mesh", "zo.tangents.models.equation"
    assert goes_with(ROOT / "tests/oracles/test_reactions.py", equation)
    assert not goes_with(ROOT / "tests/oracles/test_reactions.py", mesh)
    assert goes_with(ROOT / "tests/zo/evaluators/difference/test_steps.py", "zo.evaluators.difference")
