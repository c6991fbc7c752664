"""What a test may need beside `.[dev]`, and that a test which does not say so sees none of it.

`@pytest.mark.needs("ngspice")` is a test that runs where ngspice is, and that is skipped elsewhere with the
line that installs it. For every other test this machine is like one that has no such program or package:

- `PATH` is a folder with the utilities of `BASE` alone, which any machine with a shell, Python and make has.
  A program that a test has declared is put in front of them, and finds its own helpers where they are.
- A package that is installed, and that `.[dev]` does not bring, cannot be imported. Processes that a test
  starts see it all the same: of them only the `PATH` is this one.

A test that is skipped for another reason has failed: see `tests/conftest.py`.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BASE = """
awk bash basename cat chmod cp cut date dd dirname echo env expr false find getconf grep gzip head
hostname id kill ldconfig ln ls lscpu make mkdir mkfifo mktemp mount mv nice nohup nproc od printf pwd
readlink rm rmdir sed seq setsid sh sleep sort stat sync tail tar tee test timeout touch tr true tty
umount uname uniq unshare wc whoami which xargs
""".split()


@dataclass(frozen=True)
class Need:
    """One thing that a test can declare.

    Attributes:
        install: how one gets it, which is the reason for the skip.
        programs: names that have to be on the `PATH`.
        packages: names that have to be importable; what these packages require themselves is seen too.
        there: what else has to hold; it is asked once.
        sees: programs that the test sees too where they are, and that need not be there.
    """

    install: str
    programs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    there: Callable[[], bool] = lambda: True
    sees: tuple[str, ...] = ()


def _gpu() -> bool:
    import torch  # not at the top: conftest.py is read before typeguard is set up

    return torch.cuda.is_available()


def _dolfinx() -> bool:
    from benchmarks.mosaic import heat  # nor this, which imports torch and all that is checked

    return not heat.missing()


def _sanitizers() -> bool:
    trial = ["cc", "-fsanitize=address,undefined", "-x", "c", "-", "-o", os.devnull]
    return not subprocess.run(trial, input=b"int main(void) { return 0; }", capture_output=True).returncode


def _mounts() -> bool:
    """Root may mount, and so may users where the system lets them have namespaces of their own."""
    trial = [*UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(trial, capture_output=True).returncode


UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
PEERS = "make test-peers, or pip install"
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "as", "ld")  # which call the last two
SLURM = "munged slurmctld slurmd srun sbatch salloc scontrol scancel sinfo squeue"
NEEDS = {
    # programs
    "calculix": Need("apt-get install calculix-ccx", ("ccx",)),
    "cc": Need("apt-get install gcc libc6-dev", ("cc",), sees=COMPILERS),
    "fftw": Need(
        "apt-get install g++ libfftw3-dev", ("g++",), there=lambda: Path("/usr/include/fftw3.h").exists()
    ),
    "gfortran": Need("apt-get install gfortran", ("gfortran",)),
    "lammps": Need("apt-get install lammps", ("lmp",)),
    "mpi": Need("apt-get install openmpi-bin libopenmpi-dev", ("mpirun", "mpicc")),
    "mpifort": Need("apt-get install gfortran openmpi-bin libopenmpi-dev", ("mpirun", "mpifort")),
    "ngspice": Need("apt-get install ngspice", ("ngspice",)),
    "openfoam": Need("apt-get install openfoam", ("blockMesh", "icoFoam")),
    "openfoam sources": Need(
        "apt-get install openfoam g++, and cd /usr/src && apt-get source openfoam",
        ("blockMesh", "decomposePar", "pisoFoam", "g++"),
        there=lambda: any(Path("/usr/src").glob("openfoam-*/src/finiteVolume")) or "FOAM_SRC" in os.environ,
    ),
    "chromium": Need("apt-get install chromium", ("chromium",)),
    "dolfinx": Need(
        "apt-get install python3-dolfinx",
        ("pkg-config", "x86_64-linux-gnu-gcc"),
        there=_dolfinx,
        sees=COMPILERS,
    ),
    "sanitizers": Need("apt-get install g++", ("cc", "c++"), there=_sanitizers, sees=COMPILERS),
    "slurm": Need("apt-get install slurm-wlm", tuple(SLURM.split())),
    "sumo": Need("apt-get install sumo", ("netgenerate",)),
    # packages
    "cantera": Need("pip install cantera", packages=("cantera",)),
    "pybamm": Need("pip install pybamm", packages=("pybamm",)),
    "wntr": Need("pip install wntr six", packages=("wntr", "six")),
    "sphinx": Need("pip install sphinx, or make docs", packages=("docutils", "sphinx")),
    "cma": Need(f"{PEERS} 'blackbox-coupling[cma]'", packages=("cma",)),
    "emcee": Need("pip install emcee", packages=("emcee",)),
    "executorlib": Need(f"{PEERS} executorlib", packages=("executorlib",)),
    "fields": Need(f"{PEERS} 'blackbox-coupling[fields]'", packages=("xarray",)),
    "fmpy": Need(f"{PEERS} 'blackbox-coupling[fmu]'", packages=("fmpy",)),
    "gymnasium": Need(f"{PEERS} 'blackbox-coupling[gymnasium]'", packages=("gymnasium",)),
    "libsumo": Need("pip install 'blackbox-coupling[sumo]'", packages=("libsumo",)),
    "jax": Need(f"{PEERS} 'blackbox-coupling[jax]'", packages=("jax",)),
    "xlb": Need(f"{PEERS} jax xlb warp-lang", packages=("jax", "xlb", "warp")),
    "solvers in jax": Need(
        f"{PEERS} jax jax-cfd phiflow exponax", packages=("jax", "jax_cfd", "phi", "exponax", "equinox")
    ),
    "equinox": Need(f"{PEERS} equinox optax", packages=("equinox", "jax", "optax")),
    "flax": Need(f"{PEERS} flax optax", packages=("flax", "jax", "optax")),
    "lightning": Need(f"{PEERS} 'blackbox-coupling[lightning]'", packages=("lightning",)),
    "mlflow": Need(f"{PEERS} 'blackbox-coupling[mlflow]'", packages=("mlflow",)),
    "mlflow databases": Need(f"{PEERS} 'blackbox-coupling[mlflow]'", packages=("alembic", "sqlalchemy")),
    "hopper": Need("pip install 'blackbox-coupling[mujoco]'", packages=("gymnasium", "mujoco", "imageio")),
    "mujoco": Need("pip install 'blackbox-coupling[mujoco]'", packages=("mujoco",)),
    "scikit-fem": Need("pip install 'blackbox-coupling[skfem]'", packages=("skfem",)),
    "mpi4py": Need(f"{PEERS} mpi4py", packages=("mpi4py",)),
    "openmdao": Need(f"{PEERS} 'blackbox-coupling[openmdao]'", packages=("openmdao",)),
    "pythonfmu3": Need(f"{PEERS} pythonfmu3", packages=("pythonfmu3",)),
    "tesseract": Need(f"{PEERS} 'blackbox-coupling[tesseract]'", packages=("tesseract_core",)),
    # machines
    "gpu": Need("a GPU that torch can use", there=_gpu, sees=(*COMPILERS, "nvidia-smi")),
    "linux": Need("Linux, whose /proc is looked into", there=lambda: sys.platform == "linux"),
    "mounts": Need("root, or user namespaces that may mount", there=_mounts),
}


class Machine:
    """This machine as the tests see it, from `begin` to `end`."""

    def __init__(self) -> None:
        # a process started by another that has begun gets that one's PATH, and this beside it
        self.path = os.environ.get("BLACKBOX_TESTS_PATH") or os.environ.get("PATH", os.defpath)
        self.places = f"{self.path}{os.pathsep}/usr/sbin{os.pathsep}/sbin"  # of daemons and of mount
        self.before = {name: os.environ.get(name) for name in ("PATH", "BLACKBOX_TESTS_PATH")}
        self.find_spec = PathFinder.find_spec
        self.hidden: frozenset[str] = frozenset()  # modules, of which each is imported in vain now
        self.away: dict[str, ModuleType] = {}  # those that were imported while they were seen
        self.known: dict[str, bool] = {}  # which needs are there

    def begin(self) -> None:
        """From here on nothing optional is seen."""
        self.folder = tempfile.TemporaryDirectory(prefix="programs-", ignore_cleanup_errors=True)
        base = Path(self.folder.name) / "base"
        base.mkdir()
        for name in BASE:
            if found := shutil.which(name, path=self.places):
                (base / name).symlink_to(found)
        (base / "python3").symlink_to(os.path.realpath(sys.executable))
        os.environ["BLACKBOX_TESTS_PATH"] = self.path
        # what pytest and its plugins have imported is theirs
        theirs = {name.partition(".")[0] for name in sys.modules}
        self.optional = {module: name for module, name in optional_modules().items() if module not in theirs}

        def find_spec(_: type, name: str, path: object = None, target: object = None) -> object:
            return None if name.partition(".")[0] in self.hidden else self.find_spec(name, path, target)  # type: ignore

        PathFinder.find_spec = classmethod(find_spec)  # type: ignore[assignment]
        self.show(())

    def end(self) -> None:
        """All is seen again."""
        self._hide(frozenset())
        PathFinder.find_spec = self.find_spec
        for name, value in self.before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self.folder.cleanup()

    def show(self, names: Iterable[str]) -> None:
        """Show what these needs name, and nothing else."""
        needs = [NEEDS[name] for name in names]
        programs = [name for need in needs for name in (*need.programs, *need.sees)]
        packages = [name for need in needs for name in need.packages]
        folders = [str(place) for place in map(self._started, programs) if place]
        os.environ["PATH"] = os.pathsep.join([*folders, f"{self.folder.name}{os.sep}base"])
        self._hide(frozenset(self.optional) - self._brought_by(packages))

    def missing(self, name: str) -> str | None:
        """Why a test that needs this, and is shown it, cannot run here: the install line; None if it can."""
        need = NEEDS[name]
        if name not in self.known:
            there = all(shutil.which(program, path=self.places) for program in need.programs)
            there = there and all(importlib.util.find_spec(package) for package in need.packages)
            self.known[name] = there and need.there()
        return None if self.known[name] else need.install

    def _started(self, program: str) -> Path | None:
        """A folder with only the program, which gets the machine's PATH; None where it is not installed."""
        place, found = Path(self.folder.name) / program, shutil.which(program, path=self.places)
        if found is None or place.exists():
            return None if found is None else place
        place.mkdir()
        words = f'PATH="$PATH:"{shlex.quote(self.places)} exec {shlex.quote(found)} "$@"'
        (place / program).write_text(f"#!/bin/sh\n{words}\n", encoding="utf-8")
        (place / program).chmod(0o755)
        return place

    def _brought_by(self, modules: Iterable[str]) -> set[str]:
        """The optional modules of the packages that have these, and of all that those require."""
        names = {self.optional[module] for module in modules if module in self.optional}
        brought = required({name: extras_asked_for().get(name, set()) for name in names})
        return {module for module, name in self.optional.items() if name in brought}

    def _hide(self, modules: frozenset[str]) -> None:
        if modules == self.hidden:
            return
        self.hidden = modules
        for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
            self.away[name] = sys.modules.pop(name)
        for name in [name for name in self.away if name.partition(".")[0] not in modules]:
            sys.modules[name] = self.away.pop(name)


@cache
def extras_asked_for() -> dict[str, set[str]]:
    """Distributions that the project's extras ask for, each with the extras of it that they name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = dict[str, set[str]]()
    for line in (line for lines in project["optional-dependencies"].values() for line in lines):
        found.setdefault(canonicalize_name(Requirement(line).name), set()).update(Requirement(line).extras)
    return found


def optional_modules() -> dict[str, str]:
    """Top-level modules that are installed here, and that `.[dev]` does not bring: module -> distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines, wanted = [*project["dependencies"], *extras["dev"]], dict[str, set[str]]()
    while lines:
        asked = Requirement(lines.pop())
        if asked.name == project["name"]:
            lines += [line for extra in asked.extras for line in extras[extra]]
        elif asked.marker is None or asked.marker.evaluate():
            wanted.setdefault(canonicalize_name(asked.name), set()).update(asked.extras)
    # pip is in every environment
    brought = {*required(wanted), canonicalize_name(project["name"]), "pip"}
    others = installed().keys() - brought
    found = {module: name for name in others for module in top_level(name)}
    if found:  # a namespace may be shared, as `google` is
        for module in {module for name in brought for module in top_level(name)}:
            found.pop(module, None)
    return found


def required(asked: dict[str, set[str]]) -> set[str]:
    """The installed distributions that these, each with some extras, require, and themselves."""
    seen: dict[str, set[str]] = {}
    queue = list(asked.items())
    while queue:
        name, extras = queue.pop()
        if name not in installed() or (name in seen and extras <= seen[name]):
            continue
        seen.setdefault(name, set()).update(extras)
        for line in installed()[name][1]:
            if "extra ==" in line and not extras:
                continue
            each = Requirement(line)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                queue.append((canonicalize_name(each.name), set(each.extras)))
    return set(seen)


@cache
def installed() -> dict[str, tuple[Distribution, list[str]]]:
    """All distributions: name -> itself, and what it requires. Only the heads of their files are read."""
    found: dict[str, tuple[Distribution, list[str]]] = {}
    for each in distributions():
        text = each.read_text("METADATA") or each.read_text("PKG-INFO") or ""
        head = text.partition("\n\n")[0].splitlines()
        names = [line.removeprefix("Name: ") for line in head if line.startswith("Name: ")]
        needs = [line.removeprefix("Requires-Dist: ") for line in head if line.startswith("Requires-Dist: ")]
        if names:
            found.setdefault(canonicalize_name(names[0].strip()), (each, needs))
    return found


def top_level(name: str) -> set[str]:
    """The names under which what a distribution has is imported."""
    if name not in installed():
        return set()
    distribution, _ = installed()[name]
    if text := distribution.read_text("top_level.txt"):
        return set(text.split())
    firsts = {path.parts[0] for path in distribution.files or () if path.suffix in (".py", ".so", ".pyd")}
    return {first.partition(".")[0] for first in firsts if first != ".."}
