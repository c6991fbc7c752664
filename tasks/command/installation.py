"""The installation: versions and the machine."""

from __future__ import annotations

from tasks.folder.machine import machine, versions


def report() -> str:
    """Everything as text, for people and for bug reports."""
    import torch  # so that `machine` knows of a GPU

    sections = {"Versions": versions(), "Machine": {**machine(), "torch threads": torch.get_num_threads()}}
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name.ljust(max(map(len, rows)))}  {value}" for name, value in rows.items())]
    return "\n".join(lines)
