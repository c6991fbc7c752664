"""The machine and the versions that a result was made with."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "blackbox-coupling"
_PACKAGES = ("torch", "numpy", "scipy", "phiflow", "phiml", "h5py", "matplotlib")


def machine() -> dict[str, str | int | float]:
    """CPU model, usable cores, memory in GiB, GPU (or "none") and platform of this machine."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory (GiB)": _memory(),
        "gpu": _gpu(),
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that figures depend on, and of this package."""
    ours = {"python": platform.python_version(), PACKAGE: version(PACKAGE)}
    return ours | {package: version(package) for package in _PACKAGES}


def digest_of_files(paths: Iterable[Path], taken: Iterable[str] = ()) -> dict[str, str]:
    """The first digits of the SHA-256 of files and folders, such as programs; what is gone has "gone".

    By name; where two have the same, or one that is `taken` or that `versions` has, by path.
    """
    from blackbox.adapters.command.files import content  # with all of torch, which `--version` does not need

    digests: dict[str, str] = {}
    names = {*versions(), *taken}
    for path in dict.fromkeys(paths):
        name = str(path) if path.name in names else path.name
        names.add(path.name)
        try:
            digests[name] = content(path)[:12] if path.exists() else "gone"
        except OSError:
            digests[name] = "unreadable"
    return digests


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return a file's time of change and size, to see cheaply whether it may be another; None if gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Describe the differences of two sets of `versions`: "torch 2.7.0 -> 2.8.0"; empty if there is none.

    Packages that one of the two does not list are left out: an older version of ours did not note them.
    """
    return ", ".join(
        f"{package} {before[package]} -> {now[package]}"
        for package in before
        if package in now and before[package] != now[package]
    )


@cache
def version(package: str) -> str:
    """The version when first asked for, or "not installed" (a source tree that is only on the path)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cores() -> int:
    # in a container the machine has more cores than this process may use
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0


def _gpu() -> str:
    # a run that never imported torch used no GPU; importing it here would cost seconds
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "none"
    return torch.cuda.get_device_name()
