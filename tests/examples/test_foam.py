"""OpenFOAM's fields: what is read is what was written, and all else in the file stays."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parents[2] / "examples" / "openfoam"
spec = importlib.util.spec_from_file_location("foam", HERE / "foam.py")
foam = importlib.util.module_from_spec(spec)
spec.loader.exec_module(foam)

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
        foam.write_field(path, values)
        np.testing.assert_array_equal(foam.read_field(path), values)
        data = path.read_bytes()
        assert data.startswith(HEADER.format(form, 64).encode()) and data.endswith(PATCHES.encode())


def test_numbers_of_32_bits_are_those_of_the_header(tmp_path):
    path = field(tmp_path, "binary", scalar=32)
    foam.write_field(path, VALUES)
    np.testing.assert_array_equal(foam.read_field(path), VALUES.astype("f4"))


def test_uniform_values(tmp_path):
    np.testing.assert_array_equal(foam.read_field(field(tmp_path)), [[1, -2, 0.5]])
    np.testing.assert_array_equal(foam.read_field(field(tmp_path, entry="uniform 3e-2")), [[0.03]])


@pytest.mark.parametrize("scalar, said", [(64, 32), (32, 64)])
def test_binary_numbers_of_another_precision_are_told(tmp_path, scalar, said):
    path = field(tmp_path, "binary", scalar)
    foam.write_field(path, VALUES)
    path.write_bytes(path.read_bytes().replace(b"scalar=%d" % scalar, b"scalar=%d" % said))
    with pytest.raises(ValueError, match=f"5 values of 3 numbers, of {said} bits .* another precision"):
        foam.read_field(path)


@pytest.mark.parametrize(
    "entry", ["nonuniform List<label> 2 (1 2)", "nonuniform List<vector> 2 ((1 2 3))", ""]
)
def test_what_is_no_such_field_is_told(tmp_path, entry):
    with pytest.raises(ValueError, match="U: expected"):
        foam.read_field(field(tmp_path, entry=entry))


@pytest.mark.skipif(shutil.which("icoFoam") is None, reason="apt-get install openfoam")
@pytest.mark.slow
def test_openfoam_reads_what_we_write_and_we_read_what_it_writes(tmp_path, monkeypatch):
    """Two runs that differ in their format give one field, from a start that each got in its own."""
    environment = os.environ | {"WM_PROJECT_DIR": os.environ.get("WM_PROJECT_DIR", "/usr/share/openfoam")}
    start = np.random.default_rng(0).normal(size=(16, 3)) * [0.1, 0.1, 0]
    ends = {}
    for form in ("ascii", "binary"):
        case = shutil.copytree(HERE / "case", tmp_path / form)
        (case / "lid").write_text("speed 1;")
        for file, old, new in (
            ("blockMeshDict", "CELLS", "4"),
            ("controlDict", "STEP", "0.05"),
            ("controlDict", "writeFormat binary", f"writeFormat {form}; writePrecision 17"),
        ):
            path = case / "system" / file
            path.write_text(path.read_text().replace(old, new))
        path = case / "0" / "U"
        path.write_text(path.read_text().replace("format ascii", f"format {form}"))
        foam.write_field(path, start)
        for program in ("blockMesh", "icoFoam"):
            subprocess.run([program], cwd=case, env=environment, check=True, capture_output=True)
        ends[form] = foam.read_field(case / "0.2" / "U")
    assert ends["ascii"].shape == (16, 3) and np.abs(ends["ascii"] - start).max() > 0.01
    np.testing.assert_allclose(ends["binary"], ends["ascii"], rtol=0, atol=1e-15)
