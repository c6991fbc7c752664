"""The figures of denoised_smoothing.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims.figures import Claim, Figure, figure, mean_of
from benchmarks.claims.pages import in_table, in_text

DEFENCE = "docs/applications/denoised_smoothing.md"
RADII = ("0", "0.25", "0.5")


def of_denoising() -> Iterator[Claim]:
    """Certified accuracies of a denoiser before a frozen classifier."""

    def ours(row: tuple[str, str], radius: str) -> tuple[Figure, str]:
        case, method = row
        return mean_of(
            f"table_defense-{case}.json", f"certified accuracy at r = {radius}", 0.01, method=method
        )

    def line(case: str, *methods: str) -> list[tuple[Figure, str]]:
        return [ours((case, method), radius) for method in methods for radius in RADII]

    columns = {2: "0", 3: "0.25", 4: "0.5"}
    methods = (
        "none",
        "mse",
        "zo-ds:dct",
        "zo-ds:dct@2500000",
        "deepzero",
        "student@5000",
        "student",
        "fo-ds",
    )
    rows = [("small-b-logits", method) for method in methods]
    yield from in_table(DEFENCE, "## What was measured", rows, columns, ours)
    labels = ("small-b-labels", "student"), ("small-b-labels", "zo-ds:wide")
    rows = [("small-b-probabilities-3", "student"), *labels]
    yield from in_table(DEFENCE, "less informative answers", rows, columns, ours)
    rows = [("few-b-logits", method) for method in ("mse", "student", "fo-ds")]
    yield from in_table(DEFENCE, "`--preset few`: half of", rows, columns, ours)
    fragile = [ours(("small-a-logits", method), "0.25") for method in ("none", "mse", "student", "fo-ds")]
    yield from in_text(DEFENCE, "none # ± .3, mse # ± 1.0, student # ± 1.7, fo-ds # ± .5.", *fragile)
    words = "#, # and # at r = 0, .25 and .5, where `mse` had #, # and #, and"
    yield from in_text(DEFENCE, words, *line("labels-b-labels", "student", "mse"))
    words = "`mse` has #, # and #, the student #, # and #, `fo-ds` #, # and #."
    yield from in_text(DEFENCE, words, *line("shapes-cnn-logits", "mse", "student", "fo-ds"))


def of_safeguard() -> Iterator[Claim]:
    """The table of a forest and an SVM: accuracy on noisy test images."""

    def ours(case: str, column: tuple[str, str], once: str = "") -> tuple[Figure, str]:
        file, (method, what) = f"denoised_smoothing_safeguard{once}.json", column
        return figure(file, f"boxes/{case}/lines", what, method=method), file

    methods = ("student@2500", "student", "zo-ds:rge", "zo-ds:wide")
    columns = dict(enumerate(((method, "test accuracy") for method in methods), 2))
    columns[1] = ("student@2500", "test accuracy, start")
    rows = ("forest, logits", "forest, labels", "svm, logits", "svm, labels")
    yield from in_table(DEFENCE, "20,000 queries\nunless stated otherwise:", rows, columns, ours)
    two = columns[2], columns[3]
    forest, svm = ([ours(f"{box}, labels", end, "-once") for end in two] for box in ("forest", "svm"))
    words = "ended at # ± .009 (2,500 queries) and # ± .004 (20,000), the SVM at # ± .005 and # ± .001."
    yield from in_text(DEFENCE, words, *forest, *svm)
