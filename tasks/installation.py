"""What is installed: versions, machine, devices, and optional packages with the command that adds them."""

from __future__ import annotations

import re
from importlib import metadata

from tasks.runs.machine import PACKAGE, machine, version, versions

# the package, the extras of it that are asked for, and the extra of ours that asks
_REQUIREMENT = re.compile(r"""\s*([\w.-]+)\s*(?:\[([^\]]*)\])?.*\bextra\s*==\s*["']([\w-]+)["']""")


def report() -> str:
    """Everything as text, for people and for bug reports."""
    import torch  # so that `machine` knows of a GPU

    sections = {
        "Versions": versions(),
        "Machine": {**machine(), "torch threads": torch.get_num_threads()},
        "Devices": _devices(),
        "Optional": _extras(),
    }
    return "\n".join(f"{title}\n{_table(rows)}" for title, rows in sections.items() if rows)


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": "yes"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "yes"
    return found


def _extras() -> dict[str, str]:
    """For each extra what is there and what is missing, as the package's own metadata says."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {"extras": f"unknown, since {PACKAGE} is not installed: pip install -e ."}
    packages: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}  # extras made of other extras, as "all" is
    for requirement in requirements:
        if match := _REQUIREMENT.match(requirement):
            packages.setdefault(match[3], [])
            if match[1] == PACKAGE:
                others.setdefault(match[3], []).extend(name.strip() for name in (match[2] or "").split(","))
            else:
                packages[match[3]].append(match[1])

    def needed(extra: str) -> list[str]:
        inside = (package for other in others.get(extra, []) for package in needed(other))
        return list(dict.fromkeys([*inside, *packages.get(extra, [])]))

    return {extra: _state(extra, needed(extra)) for extra in sorted(packages)}


def _state(extra: str, packages: list[str]) -> str:
    found = {package: version(package) for package in packages}
    missing = [package for package, number in found.items() if number == "not installed"]
    if missing:
        return f"missing {', '.join(missing)}; install with: pip install '{PACKAGE}[{extra}]'"
    return ", ".join(f"{package} {number}" for package, number in found.items())


def _table(rows: dict[str, object] | dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows.items())
