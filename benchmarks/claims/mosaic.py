"""The figures of mosaic.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.catalogue import read
from benchmarks.claims.figures import Claim, Figure, figure
from benchmarks.claims.pages import in_text
from benchmarks.mosaic.comparison import gain

MOSAIC = "docs/applications/mosaic.md"


def of_mosaic() -> Iterator[Claim]:
    """The solver-in-the-loop study, and a field that is fitted."""

    def ends(solver: str, *columns: str) -> list[tuple[Figure, str]]:
        """Of each column a figure for each seed."""
        file = f"mosaic/{solver}.json"
        values = (figure(file, f"cells/{column}/runs", "final").values for column in columns)
        return [(Figure((value,)), file) for seeds in values for value in seeds]

    def ahead(solver: str, column: str, over: str) -> tuple[Figure, str]:
        file = f"mosaic/{solver}.json"
        found = gain(read(file), column, over)
        return Figure(() if found is None else (found,)), file

    four = "NOG, four windows", "WIG, four windows", "tangents with replay"
    words = "NOG ends at #, # and # and WIG at #, # and #, where replay has #, # and #:"
    yield from in_text(MOSAIC, words, *ends("jax-cfd", *four))
    words = "NOG has #, # and # with four windows, and replay #, # and #:"
    yield from in_text(MOSAIC, words, *ends("phiflow", four[0], four[-1]))
    through = "# in 1,080 rows, `fit_field` by default at #"
    space = [f"{method}: velocity in 3-D, Exponax" for method in ("adjoint, L-BFGS", "fit_field")]
    found = [figure("mosaic/field.json", f"cells/{name}/runs", "error") for name in space]
    words = f"L-BFGS on its own derivative ends at {through} in 60."
    yield from in_text(MOSAIC, words, *((each, "mosaic/field.json") for each in found))
    words = "is worth # % over NOG there, and tangents with replay are # % ahead of NOG"
    columns = "WIG", "tangents with replay"
    yield from in_text(MOSAIC, words, *(ahead("phiflow", column, "NOG") for column in columns))
    paper = "PhiFlow's derivative is worth # % over NOG, and tangents with replay are # % ahead of NOG"
    yield from in_text(MOSAIC, paper, *(ahead("phiflow-paper", column, "NOG") for column in columns))
    words = "#, # and # after 36 calls, where WIG has #, # and #, with a fifth of the rows"
    yield from in_text(MOSAIC, words, *ends("phiflow-paper", "tangents with replay", "WIG"))
    words = "6,400 rows, NOG is # % ahead of its own one window, and WIG # %"
    yield from in_text(MOSAIC, words, *(ahead("phiflow-paper", column, "NOG") for column in four[:2]))
    words = "worth with one window (+# %), and pairs of states alone (ONE, 384 rows) are ahead of it, at +# %"
    pairs = [ahead("phiflow-paper", column, "NOG") for column in ("tangents", "ONE")]
    yield from in_text(MOSAIC, words, *pairs)
    paper = "windows a step they are # % and # % ahead of it, which is the size of Mosaic's gain"
    bare = [ahead("jax-cfd-paper", column, "uncorrected") for column in four[:2]]
    yield from in_text(MOSAIC, paper, *bare)
    words = "and tangents with replay # % for a nineteenth of those rows"
    yield from in_text(MOSAIC, words, ahead("jax-cfd-paper", "tangents with replay", "uncorrected"))
