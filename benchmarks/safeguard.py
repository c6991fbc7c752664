"""Classifiers that may mislead a student, a random forest and an RBF-SVM: is it ever below its start?

python -m benchmarks safeguard --size ci        seconds; it shows that it runs, no more
python -m benchmarks safeguard --size small     probabilities, and labels alone; 2,500 and 20,000 queries
python -m benchmarks safeguard --size once      as `--preset few`: true labels, one comparison with the start

A forest is constant almost everywhere, and an SVM is flat far from its data. A student is smooth, and its
derivative need not be theirs. Weights therefore count only if the box itself, asked, is right more often on
held-out noisy images than with the weights that training began with. Whether that suffices is seen on other
images: the test's, each with several noises, the same for start and end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tasks
from benchmarks import protocol
from benchmarks.table_defense import CI
from tasks.applications.denoised_smoothing import DenoisedSmoothing, SklearnClassifier
from tasks.applications.denoised_smoothing.config import Config
from tasks.applications.denoised_smoothing.data import digits_of_the_box
from tasks.applications.denoised_smoothing.networks import predictions
from tasks.problem.data import evaluating

NAME = "denoised_smoothing_safeguard"  # file in `benchmarks/results`
START = "mse"
METHODS = (START, "student@2500", "student", "zo-ds:rge", "zo-ds:wide")
SMALL = Config(methods=METHODS, steps=1000, student_steps=500, certify_images=1, n=20, n0=10)
ONCE = replace(
    SMALL,
    methods=(START, "student@2500", "student"),
    loss="labels",
    mse_weight=0.1,
    student_first=0.5,
    validation_images=394,  # each image twice
    validations=1,
)
SIZES = {"ci": replace(CI, methods=(START, "student")), "small": SMALL, "once": ONCE}
SEEDS = {"ci": 1, "small": 3, "once": 3}
BOXES, ANSWERS = ("forest", "svm"), ("logits", "labels")
CHOSEN_BY = ("validation accuracy of the start", "validation accuracy", "chosen step", "steps")
COPIES = 20  # noisy ones of each test image
TEST = 104  # a seed for them, which no training has


def forest() -> SklearnClassifier:
    """A random forest of 200 trees."""
    from sklearn.ensemble import RandomForestClassifier

    return _fitted(RandomForestClassifier(200, random_state=0), "forest of 200")


def svm() -> SklearnClassifier:
    """An RBF-SVM of standardised pixels, with calibrated probabilities."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    machine = CalibratedClassifierCV(SVC(random_state=0), ensemble=False)  # pyright: ignore[reportArgumentType]
    return _fitted(make_pipeline(VarianceThreshold(1e-5), StandardScaler(), machine), "calibrated SVM")


def _fitted(classifier, name: str) -> SklearnClassifier:  # noqa: ANN001 - scikit-learn has no types
    images, labels = digits_of_the_box()
    classifier.fit(images.astype(np.float64), labels)
    return SklearnClassifier(classifier, (1, 8, 8), name)


@torch.no_grad()
def right(problem: DenoisedSmoothing, network: torch.nn.Module, seed: int) -> Tensor:
    """How often the classifier is right on each test image behind a denoiser, `(images,)`."""
    test = problem.images.test
    noisy, label = test.noisy(COPIES * len(test), TEST + seed, problem.config.sigma)
    with evaluating(network):
        parts = [predictions(problem.box(network(some).clamp(0, 1))) for some in noisy.split(1000)]
    return (torch.cat(parts) == label).double().view(COPIES, -1).mean(dim=0)


def measured(run: tasks.FinishedRun, problem: DenoisedSmoothing) -> Iterator[dict[str, Any]]:
    """A line of the table for every seed and method."""
    rows = {(row.method, row.seed): row for row in run.result.table}
    for seed in run.result.seeds:
        before = right(problem, run.network(START, seed), seed)
        for method in problem.config.methods[1:]:
            gain = right(problem, run.network(method, seed), seed) - before
            row = rows[method, seed]
            yield {
                "seed": seed,
                "method": method,
                "queries": row.queries,
                **{name: row.extra[name] for name in CHOSEN_BY},
                "start kept": bool(row.extra["start kept"]),
                "test accuracy, start": float(before.mean()),
                "test accuracy": float((before + gain).mean()),
                "gain": float(gain.mean()),
                "standard error of the gain": float(gain.std() / len(gain) ** 0.5),
            }


def show(case: str, lines: Sequence[dict[str, Any]]) -> None:
    """Print a line for each method: the mean over seeds, and the lowest gain."""
    for method in dict.fromkeys(line["method"] for line in lines):
        lines_of_method = [line for line in lines if line["method"] == method]
        starts = [float(line["test accuracy, start"]) for line in lines_of_method]
        ends = [float(line["test accuracy"]) for line in lines_of_method]
        worst = min(lines_of_method, key=lambda line: float(line["gain"]))
        spread = f" ± {stdev(ends):.3f}" if len(ends) > 1 else ""
        print(
            f"{case}, {method}: start {fmean(starts):.3f}, end {fmean(ends):.3f}{spread}; "
            f"lowest gain {worst['gain']:+.3f} ± {worst['standard error of the gain']:.3f}; start kept "
            f"{sum(bool(line['start kept']) for line in lines_of_method)} of {len(lines_of_method)}"
        )


def main(words: Sequence[str]) -> None:
    """Run all classifiers, print and keep what happened."""
    parser = protocol.options("safeguard", __doc__, SIZES, trains=True)
    parser.add_argument("--boxes", nargs="+", choices=BOXES, default=BOXES)
    parser.add_argument("--answers", nargs="+", choices=ANSWERS, default=ANSWERS)
    chosen = parser.parse_args(words)
    seeds, boxes = chosen.seeds or range(SEEDS[chosen.size]), {}
    for box in chosen.boxes:
        for answers in chosen.answers:
            config = replace(SIZES[chosen.size], box=f"benchmarks.safeguard:{box}", answers=answers)
            problem = DenoisedSmoothing(config, folder=chosen.data)
            run = protocol.finished(problem, chosen.size, seeds, chosen.runs)
            lines = list(measured(tasks.FinishedRun(run, problem), problem))
            case = f"{box}, {answers}"
            boxes[case] = {"config": run.config, "lines": lines}
            show(case, lines)
    if chosen.size != "ci":
        to = protocol.path(NAME, chosen.size)
        protocol.write("safeguard", words, {"preset": chosen.size, "boxes": boxes}, to)
