"""What is installed: versions, machine and devices."""

from __future__ import annotations

from tasks.folder.machine import machine, versions


def report() -> str:
    """Everything as text, for people and for bug reports."""
    import torch  # so that `machine` knows of a GPU

    sections = {
        "Versions": versions(),
        "Machine": {**machine(), "torch threads": torch.get_num_threads()},
        "Devices": _devices(),
    }
    return "\n".join(f"{title}\n{_table(rows)}" for title, rows in sections.items() if rows)


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": "yes"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "yes"
    return devices


def _table(rows: dict[str, object] | dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows.items())
