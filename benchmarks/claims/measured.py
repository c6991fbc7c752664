"""What several pages say of tangents: medians over problems, and the box alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

from benchmarks import protocol
from benchmarks.catalogue import read
from benchmarks.claims.figures import Figure
from benchmarks.tangents.report import ratios, spent

UNCORRECTED = "tangents_uncorrected.json"


def over_all(folder: str, method: str) -> list[tuple[Figure, str]]:
    """Rows and error over first order's: medians, least and worst error, number of problems of size small."""
    curves = [
        read(path.relative_to(protocol.RESULTS).as_posix())["curves"]
        for path in sorted((protocol.RESULTS / folder).glob("*.json"))
        if not path.stem.endswith("-paper")
    ]
    ends = [fmean(seeds) for methods in curves if (seeds := ratios(methods, method))]
    rows = [share for methods in curves if (share := spent(methods, method)) is not None]
    values = (median(rows), median(ends), min(ends), max(ends), len(ends))
    return [(Figure((value,)), f"{folder}/table.md") for value in values]  # which is of the same files


def first_order(name: str) -> list[float]:
    """Errors of first order on a problem, by seed."""
    curves = read(f"tangents/{name}.json").get("curves", {}).get("first-order", {})
    return [curve["errors"][-1] for curve in curves.values()]


def box_alone(
    name: str, errors: Sequence[float], middle: Callable[[Sequence[float]], float]
) -> tuple[Figure, str]:
    """The box alone over some errors of first order, the mean or the median; none for a design."""
    alone = read(UNCORRECTED).get("errors", {}).get(name)
    return Figure(
        () if alone is None or not errors else (middle([alone / error for error in errors]),)
    ), UNCORRECTED
