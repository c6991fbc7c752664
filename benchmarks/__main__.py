"""`python -m benchmarks`: what there is; `NAME --size ci|small|paper`: run one.

`page` computes the figures that pages state, from the committed results, and brings the pages up to date.
`all` says at which commits figures were measured, and measures again: `python -m benchmarks all --help`.
`gpu` is everything that a GPU must show, in parts: `python -m benchmarks gpu --help`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from blackbox.checks import nearest


def main(words: Sequence[str]) -> int:
    """List the benchmarks, run one, or bring figures and pages up to date; 2 for wrong use."""
    from benchmarks import protocol
    from benchmarks.catalogue import BENCHMARKS

    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        print(listed())
        return 0
    name, *others = words
    if name == "page":
        from benchmarks import figures
        from benchmarks.figures import marks

        changed = marks.write(figures.write())
        for path in [figures.FILE, *changed]:
            print(f"written to {path}")
        return 0
    if name == "all":
        from benchmarks import release

        release.main(others)
        return 0
    if name == "gpu":
        from benchmarks.gpu import runner

        runner.main(others)
        return 0
    if name not in BENCHMARKS:
        print(
            f"benchmarks: expected a benchmark, all, gpu or page, got {name!r}. {nearest(name, BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    protocol.commit()  # of what is about to be measured, whatever is committed meanwhile
    BENCHMARKS[name].run(others)
    return 0


def listed() -> str:
    """A table of all benchmarks."""
    from benchmarks.catalogue import BENCHMARKS

    rows = [("benchmark", "sizes", "small takes", "seeds", "published table or claim", "committed figures")]
    for benchmark in BENCHMARKS.values():
        sizes = " ".join(benchmark.sizes)
        rows.append(
            (
                benchmark.name,
                sizes,
                benchmark.time,
                str(benchmark.seeds),
                benchmark.about,
                benchmark.measured(),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
