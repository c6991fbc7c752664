"""The figures of image_classification.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims.figures import Claim, Figure, mean_of
from benchmarks.claims.pages import in_table, in_text

IMAGES = "docs/applications/image_classification.md"


def of_images() -> Iterator[Claim]:
    """The demo, and the published experiments on images of our own."""

    def ours(name: str, method: str, *labels: object) -> list[tuple[Figure, str]]:
        return [mean_of(f"{name}/result.json", "ours", label=label, method=method) for label in labels]

    def demo(method: str, column: str) -> tuple[Figure, str]:
        return mean_of("image_classification_demo/result.json", column, method=method)

    rows = ("fo", "fo-sparse-gradient", "deepzero", "rge")
    yield from in_table(IMAGES, "The demo, one seed", rows, {1: "ours", 2: "queries"}, demo)
    both = [ours("shapes_sparse", method, 0.99)[0] for method in ("deepzero", "fo-sparse-gradient")]
    yield from in_text(IMAGES, "The means are # ± 8.3 and # ± 2.6,", *both)
    sizes = (3700, 6670, 9640)
    cge, fo, rge = (ours("figure2_cge_vs_rge", method, *sizes) for method in ("cge", "fo", "rge"))
    pairs = [mean for pair in zip(cge, fo, strict=True) for mean in pair]
    words = "(# / #, # / #, # / # %), and RGE with as many queries at (#, #, #)"
    yield from in_text(IMAGES, words, *pairs, *rge)
    yield from in_text(IMAGES, "CGE falls to # %", *ours("table_smoothing_parameter", "cge", 0.5))
    words = "RGE rises from # % at one query a step to # % at 500"
    yield from in_text(IMAGES, words, *ours("table_query_number", "rge", 1, 500))
    deepzero, exact, fixed = (
        ours("figure4_sparsity", method, 0.9, 0.95, 0.99)
        for method in ("deepzero", "fo-sparse-gradient", "fo-sparse-weight")
    )
    yield from in_text(
        IMAGES, "deepzero ends at # / # / # %, exact gradients on its sets at # / # / #", *deepzero, *exact
    )
    yield from in_text(IMAGES, "GraSP's fixed mask at # / # / #.", *fixed)
    means = [
        ours("shapes_sparsity", method, label)[0]
        for method, label in (
            *(("fo-sparse-gradient", share) for share in (0.9, 0.95, 0.99)),
            *(("fo-sparse-weight", share) for share in (0.9, 0.95, 0.99)),
            ("fo", 0.0),
        )
    ]
    words = (
        "sets end at #, # and # %, a fixed mask at #, # and #, the last of which is chance, first order on "
        "all weights at #."
    )
    yield from in_text(IMAGES, words, *means)
    methods = ("deepzero", "pattern-search", "dfa", "fa", "align-ada", "forward-gradient", "fo")
    words = (
        "deepzero # %, pattern search with as many queries #, direct feedback alignment #, feedback "
        "alignment #, Align-ada #, forward gradients #, first order on all weights #."
    )
    means = [ours("figure3_baselines", method, "ResNet")[0] for method in methods]
    yield from in_text(IMAGES, words, *means)
