"""FMUs that the tests build: one in C for FMI 2, one by pythonfmu3 for FMI 3."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def decay(tmp_path_factory):
    """`decay.c`, built: FMI 2, with directional derivatives."""
    fmpy = pytest.importorskip("fmpy", reason="pip install 'blackbox-coupling[fmu]'")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("expected a C compiler, cc")
    folder = tmp_path_factory.mktemp("decay")
    library, headers = folder / "decay.so", Path(fmpy.__file__).parent / "c-code"
    command = [compiler, "-shared", "-fPIC", "-O1", f"-I{headers}", HERE / "decay.c", "-o", library, "-lm"]
    subprocess.run(command, check=True)
    path = folder / "decay.fmu"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(HERE / "decay.xml", "modelDescription.xml")
        archive.write(library, f"binaries/{fmpy.platform}/decay{fmpy.sharedLibraryExtension}")
        archive.writestr("resources/nothing.txt", "")
    return path


@pytest.fixture(scope="session")
def oscillator(tmp_path_factory):
    """`oscillator.py` as an FMU: FMI 3."""
    pytest.importorskip("fmpy", reason="pip install 'blackbox-coupling[fmu]'")
    builder = pytest.importorskip("pythonfmu3", reason="pip install pythonfmu3").FmuBuilder
    return builder.build_FMU(HERE / "oscillator.py", dest=tmp_path_factory.mktemp("oscillator"))
