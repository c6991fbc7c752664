"""`FAMILY`: which problems are variants of one simulator, which count as one."""

from __future__ import annotations

from collections.abc import Mapping

FAMILY = {"double-pendulum-wall": "double-pendulum", "fitzhugh-nagumo-noise": "fitzhugh-nagumo"}
FAMILY |= {"fitzhugh-nagumo-failing": "fitzhugh-nagumo", "mixed-units": "lorenz-96"}
FAMILY |= {"brusselator-20k": "brusselator", "ks-3k": "ks-26-8", "ks-3k-noise": "ks-26-8"}
FAMILY |= dict.fromkeys(("wake-30k", "wake-30k-unroll-16", "wake-260k", "wake-32x64"), "wake-1k")


def by_family(ends: Mapping[str, float]) -> dict[str, list[float]]:
    """The numbers of problems, those of variants of one simulator together.

    Args:
        ends: a number for each problem.
    """
    together: dict[str, list[float]] = {}
    for name, end in ends.items():
        together.setdefault(FAMILY.get(name, name), []).append(end)
    return together
