"""The times of queries in evaluators.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims.figures import Claim, Figure, figure, ratio
from benchmarks.claims.pages import in_table

SPEED = "docs/guide/evaluators.md"


def of_evaluators() -> Iterator[Claim]:
    """A query by differences over a published one, in the time that it takes."""
    file = "query_speed.json"

    def ours(network: str, mode: str) -> tuple[Figure, str]:
        times = (
            figure(file, "measured", f"microseconds, mean/{name}", network=network, mode=mode)
            for name in ("published", "difference")
        )
        return ratio(*times), file

    networks = ("resnet20", "resnet56", "dncnn", "wake")
    yield from in_table(SPEED, "## Time of a query", networks, {1: "training", 2: "evaluation"}, ours)
