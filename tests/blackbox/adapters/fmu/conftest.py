"""FMUs that the tests build: one in C for each version, one by pythonfmu3 for FMI 3."""

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def built(name, folder):
    """An FMU of `name.c` and `name.xml`."""
    import fmpy

    library, headers = folder / f"{name}.so", Path(fmpy.__file__).parent / "c-code"
    is_3 = b'fmiVersion="3' in (HERE / f"{name}.xml").read_bytes()
    command = ["cc", "-shared", "-fPIC", "-O1", f"-I{headers}", HERE / f"{name}.c", "-o", library, "-lm"]
    if is_3:  # what nobody calls here, but FMPy looks for
        of_fmi = set(re.findall(r"define (fmi3[A-Z]\w+) ", (headers / "fmi3Functions.h").read_text()))
        missing = of_fmi - set(re.findall(r"fmi3\w+", (HERE / f"{name}.c").read_text()))
        command += [f"-Wl,--defsym={function}=fmi3Terminate" for function in missing]
    subprocess.run(command, check=True)
    platform = fmpy.platform_tuple if is_3 else fmpy.platform
    path = folder / f"{name}.fmu"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(HERE / f"{name}.xml", "modelDescription.xml")
        archive.write(library, f"binaries/{platform}/{name}{fmpy.sharedLibraryExtension}")
        archive.writestr("resources/nothing.txt", "")
    return path


@pytest.fixture(scope="session")
def decay(tmp_path_factory):
    """`decay.c`, built: FMI 2, with directional derivatives."""
    return built("decay", tmp_path_factory.mktemp("decay"))


@pytest.fixture(scope="session")
def mixer(tmp_path_factory):
    """`mixer.c`, built: FMI 3, with directional derivatives, arrays, and floats of both sizes."""
    return built("mixer", tmp_path_factory.mktemp("mixer"))


@pytest.fixture(scope="session")
def oscillator(tmp_path_factory):
    """`oscillator.py` as an FMU: FMI 3."""
    from pythonfmu3 import FmuBuilder

    return FmuBuilder.build_FMU(HERE / "oscillator.py", dest=tmp_path_factory.mktemp("oscillator"))
