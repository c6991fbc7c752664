"""OpenFOAM's fields: what is read is what was written, and all else in the file stays."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from blackbox.adapters import openfoam

CASE = Path(__file__).parents[3] / "examples" / "openfoam" / "case"

HEADER = (
    'FoamFile {{ version 2.0; format {}; arch "LSB;label=32;scalar={}"; class volVectorField; object U; }}\n'
)
PATCHES = "boundaryField { lid { type fixedValue; value uniform (1 0 0); } internalField_of_none { } }\n"
VALUES = np.random.default_rng(0).normal(size=(5, 3))


def field(tmp_path, form="ascii", scalar=64, entry="uniform (1 -2 0.5)"):
    path = tmp_path / "U"
    path.write_text(HEADER.format(form, scalar) + f"internalField   {entry};\n" + PATCHES)
    return path


@pytest.mark.parametrize("form", ["ascii", "binary"])
@pytest.mark.parametrize("width", [1, 3, 6, 9])
def test_what_is_written_is_read_again_to_the_bit_and_the_rest_stays(tmp_path, form, width):
    path, values = field(tmp_path, form), np.random.default_rng(1).normal(size=(7, width))
    for _ in range(2):  # a uniform value is replaced, and then a list
        openfoam.write_field(path, values)
        np.testing.assert_array_equal(openfoam.read_field(path), values)
        data = path.read_bytes()
        assert data.startswith(HEADER.format(form, 64).encode()) and data.endswith(PATCHES.encode())


def test_numbers_of_32_bits_are_those_of_the_header(tmp_path):
    path = field(tmp_path, "binary", scalar=32)
    openfoam.write_field(path, VALUES)
    np.testing.assert_array_equal(openfoam.read_field(path), VALUES.astype("f4"))


def test_uniform_values(tmp_path):
    np.testing.assert_array_equal(openfoam.read_field(field(tmp_path)), [[1, -2, 0.5]])
    np.testing.assert_array_equal(openfoam.read_field(field(tmp_path, entry="uniform 3e-2")), [[0.03]])


@pytest.mark.parametrize("entry, row", [("uniform (1 -2 0.5)", [1, -2, 0.5]), ("uniform 3e-2", [0.03])])
def test_a_uniform_value_comes_for_as_many_cells_as_are_asked(tmp_path, entry, row):
    found = openfoam.read_field(field(tmp_path, entry=entry), cells=4)
    np.testing.assert_array_equal(found, 4 * [row])
    found[0] = 9  # cells do not share memory
    np.testing.assert_array_equal(found[1], row)


@pytest.mark.parametrize("count", [1, 5])
def test_a_list_of_another_number_of_cells_is_told(tmp_path, count):
    path = field(tmp_path)
    openfoam.write_field(path, VALUES[:count])
    np.testing.assert_array_equal(openfoam.read_field(path, cells=count), VALUES[:count])
    with pytest.raises(ValueError, match=f"U: expected 4 cells, got {count}"):
        openfoam.read_field(path, cells=4)


@pytest.mark.parametrize("comment", ["// {}\n", "/* {}\n {} */ "])
def test_an_entry_in_a_comment_is_none(tmp_path, comment):
    path = field(tmp_path)
    text = comment.replace("{}", "internalField uniform (9 9 9);")
    path.write_text(path.read_text().replace("internalField ", text + "internalField "))
    np.testing.assert_array_equal(openfoam.read_field(path), [[1, -2, 0.5]])
    openfoam.write_field(path, VALUES)
    np.testing.assert_array_equal(openfoam.read_field(path), VALUES)
    assert text in path.read_text()


@pytest.mark.parametrize("scalar, said", [(64, 32), (32, 64)])
def test_binary_numbers_of_another_precision_are_told(tmp_path, scalar, said):
    path = field(tmp_path, "binary", scalar)
    openfoam.write_field(path, VALUES)
    path.write_bytes(path.read_bytes().replace(b"scalar=%d" % scalar, b"scalar=%d" % said))
    with pytest.raises(ValueError, match=f"5 values of 3 numbers, of {said} bits .* another precision"):
        openfoam.read_field(path)


@pytest.mark.parametrize(
    "entry", ["nonuniform List<label> 2 (1 2)", "nonuniform List<vector> 2 ((1 2 3))", ""]
)
def test_what_is_no_such_field_is_told(tmp_path, entry):
    with pytest.raises(ValueError, match="U: expected"):
        openfoam.read_field(field(tmp_path, entry=entry))


@pytest.mark.parametrize("shape", [(5,), (5, 2), (1, 5, 3)])
def test_values_of_a_shape_that_no_field_has_are_told(tmp_path, shape):
    path = field(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"U: expected values \(cells, components\) .* got shape"):
        openfoam.write_field(path, np.zeros(shape))
    assert path.read_bytes() == before


def test_a_binary_file_that_was_cut_off_is_told(tmp_path):
    path = field(tmp_path, "binary")
    openfoam.write_field(path, VALUES)
    for length in (100, 3):
        path.write_bytes(path.read_bytes().replace(PATCHES.encode(), b"")[:-length])
        with pytest.raises(ValueError, match="U: expected 5 values"):
            openfoam.read_field(path)


@pytest.mark.needs("openfoam")
@pytest.mark.slow
def test_openfoam_reads_what_we_write_and_we_read_what_it_writes(tmp_path, monkeypatch):
    """Two runs that differ in their format give one field, from a start that each got in its own."""
    environment = os.environ | {"WM_PROJECT_DIR": os.environ.get("WM_PROJECT_DIR", "/usr/share/openfoam")}
    start = np.random.default_rng(0).normal(size=(16, 3)) * [0.1, 0.1, 0]
    ends = {}
    for form in ("ascii", "binary"):
        case = shutil.copytree(CASE, tmp_path / form)
        (case / "lid").write_text("speed 1;")
        (case / "system" / "settings").write_text("cells 4; step 0.05;")
        path = case / "system" / "controlDict"
        path.write_text(path.read_text().replace("binary", f"{form}; writePrecision 17"))
        path = case / "0" / "U"
        path.write_text(path.read_text().replace("format ascii", f"format {form}"))
        openfoam.write_field(path, start)
        for program in ("blockMesh", "icoFoam"):
            subprocess.run([program], cwd=case, env=environment, check=True, capture_output=True)
        ends[form] = openfoam.read_field(case / "0.2" / "U")
    assert ends["ascii"].shape == (16, 3) and np.abs(ends["ascii"] - start).max() > 0.01
    np.testing.assert_allclose(ends["binary"], ends["ascii"], rtol=0, atol=1e-15)
