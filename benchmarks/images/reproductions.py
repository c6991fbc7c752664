"""The reproductions of DeepZero's image classification and what follows from it: the runs of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.images.baselines import BaselineConfig, WithoutBackpropagation
from benchmarks.images.reproduction import Group, Line, Reproduction, reproduce
from benchmarks.images.sizes import Size, in_epochs, residual, simple
from benchmarks.published import (
    FIGURE_2,
    FIGURE_4,
    FIGURE_4_DENSE,
    QUERY_NUMBER,
    SMOOTHING_PARAMETER,
)
from tasks.applications.image_classification.config import DEMO, Config
from tasks.applications.image_classification.data.loading import TRAIN

BESIDE_EXACT = ("deepzero", "fo-sparse-gradient")


def demo(size: Size) -> list[Group]:
    """The demo, all methods in one run."""
    config = residual(size)
    if size == "small":
        config = replace(DEMO, train_images=TRAIN[DEMO.dataset])
    return [Group("ResNet", replace(config, methods=("fo", "fo-sparse-gradient", "deepzero", "rge")))]


def figure2(size: Size) -> list[Group]:
    """One for each size of the CNN; with sparsity 0 RGE has as many directions as there are parameters."""
    base = replace(simple(size), methods=("fo", "cge", "rge"))
    counts = list(FIGURE_2)[:2] if size == "ci" else list(FIGURE_2)
    return [Group(count, replace(base, network=f"simple-{count}"), FIGURE_2[count]) for count in counts]


def query_number(size: Size) -> list[Group]:
    """One for each number of directions."""
    numbers = {"ci": (5, 50), "small": (1, 10, 50, 250, 500), "paper": tuple(QUERY_NUMBER)}
    base = replace(simple(size), methods=("rge",), network="simple-6670")
    settings = {q: replace(base.zeroth_order, directions=q) for q in numbers[size]}
    return [Group(q, replace(base, zeroth_order=settings[q]), {"rge": QUERY_NUMBER[q]}) for q in settings]


def smoothing_parameter(size: Size) -> list[Group]:
    """One for each mu."""
    base = replace(simple(size), methods=("cge",), network="simple-9640")
    values = (5e-2, 5e-3) if size == "ci" else tuple(mu for mu in SMOOTHING_PARAMETER if mu >= 5e-6)
    settings = {mu: replace(base.zeroth_order, mu=mu) for mu in values}
    return [
        Group(mu, replace(base, zeroth_order=settings[mu]), {"cge": SMOOTHING_PARAMETER[mu]}) for mu in values
    ]


def figure3(size: Size) -> list[Group]:
    """All methods in one run."""
    methods = ("deepzero", "pattern-search", "align-ada", "forward-gradient", "fa", "dfa", "fo")
    settings = vars(replace(residual(size), methods=methods))
    config = BaselineConfig(**settings, feedback_learning_rate=0.02)
    return [Group("ResNet", config, problem=WithoutBackpropagation)]


def figure4(size: Size) -> list[Group]:
    """Dense first order, then one group for each sparsity."""
    sparsities = {"ci": (0.8, 0.9), "small": (0.9, 0.95, 0.99), "paper": tuple(FIGURE_4)}
    base = residual(size)
    sparse = replace(base, methods=(*BESIDE_EXACT, "fo-sparse-weight"))
    groups = [Group(0.0, replace(base, methods=("fo",)), FIGURE_4_DENSE)]
    for sparsity in sparsities[size]:
        groups.append(Group(sparsity, replace(sparse, sparsity=sparsity), FIGURE_4[sparsity]))
    return groups


def _on_shapes(size: Size) -> Config:
    """The residual network on `shapes`, in small with batches of 16: a million queries a seed at .99."""
    config = residual(size)
    if size == "small":
        config = replace(config, dataset="shapes", train_images=2000, validation_images=1000)
        config = replace(config, test_images=2000, batch=16, evaluator="auto")
        config = in_epochs(config, 19, warm_up=0.2)
    return config


def shapes_sparse(size: Size) -> list[Group]:
    """Sparsity 0.99 on `shapes`."""
    config = replace(_on_shapes(size), sparsity=0.99, methods=BESIDE_EXACT)
    return [Group(0.99, config, FIGURE_4[0.99])]


def shapes_sparsity(size: Size) -> list[Group]:
    """Exact gradients by sparsity on `shapes`, which cost no queries: deepzero's sets, and a fixed mask."""
    base = _on_shapes(size)
    sparse = replace(base, methods=("fo-sparse-gradient", "fo-sparse-weight"))
    groups = [Group(0.0, replace(base, methods=("fo",)), FIGURE_4_DENSE)]
    for sparsity in {"ci": (0.8,), "small": (0.9, 0.95, 0.99), "paper": tuple(FIGURE_4)}[size]:
        groups.append(Group(sparsity, replace(sparse, sparsity=sparsity), FIGURE_4[sparsity]))
    return groups


def _all() -> dict[str, Reproduction]:
    def made(
        name: str,
        title: str,
        across: str,
        groups: Callable[[Size], list[Group]],
        note: str = "",
        seeds: int = 1,
    ) -> Reproduction:
        return Reproduction(name, title, across, groups, note, seeds)

    reproductions = (
        made("image_classification_demo", "The demo of image classification", "network", demo),
        made(
            "figure2_cge_vs_rge",
            "CGE against RGE by network size",
            "parameters, published",
            figure2,
            seeds=3,
        ),
        made("table_query_number", "RGE by queries a step", "queries a step", query_number, seeds=3),
        made(
            "table_smoothing_parameter",
            "CGE by smoothing parameter",
            "mu",
            smoothing_parameter,
            "A mu that is lost in the rounding of a weight is an error here, and so left out, not 10 %.",
            seeds=3,
        ),
        made(
            "figure3_baselines",
            "DeepZero and other methods without backpropagation",
            "network",
            figure3,
            "The publication draws these accuracies without giving numbers; its forward gradients are of "
            "Ren et al. 2022 (with local losses, and on weights), ours of Baydin et al. 2022. Pattern search "
            "has as many queries as deepzero.",
        ),
        made("figure4_sparsity", "DeepZero by sparsity", "sparsity", figure4),
        made(
            "shapes_sparse",
            "deepzero at sparsity 0.99",
            "sparsity",
            shapes_sparse,
            "Gradients are exact for fo-sparse-gradient, which takes deepzero's sets, batches and schedule.",
            seeds=3,
        ),
        made(
            "shapes_sparsity",
            "Exact gradients on sparse sets by sparsity",
            "sparsity",
            shapes_sparsity,
            "Gradients are exact: fo-sparse-gradient takes deepzero's sets, batches and schedule.",
            seeds=3,
        ),
    )
    return {reproduction.name: reproduction for reproduction in reproductions}


REPRODUCTIONS = _all()


def main(name: str, words: Sequence[str]) -> list[Line]:
    """Run one by its name."""
    return reproduce(REPRODUCTIONS[name], words)
