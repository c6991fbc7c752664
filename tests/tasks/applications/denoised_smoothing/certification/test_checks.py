"""Bad input is refused before the first query, in words that say what came and how to mend it."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

from blackbox import ArraySpec
from blackbox.adapters import from_callable
from blackbox.errors import ConfigurationError
from tasks.applications.denoised_smoothing import SmoothedClassifier
from tasks.errors import DataError, ProblemError
from tests.tasks.applications.denoised_smoothing.certification.classifiers import (
    Denoiser,
    Label,
    Linear,
    pictures,
)


class Case(NamedTuple):
    name: str
    error: type
    words: list[str]
    settings: dict | None = None
    images: object = None
    labels: object = None
    box: object = None
    denoiser: object = None


def box(inputs=Linear.inputs, outputs=Linear.outputs):
    return from_callable(lambda *images: images[0], inputs=inputs, outputs=outputs, vectorized=True)


def one_bad(value):
    images = pictures(4)
    images[2, 0, 1, 1] = value
    return images


class Mean(nn.Module):
    """One image of many."""

    def forward(self, x):
        return x.mean(0, keepdim=True)


class Centred(nn.Module):
    """All images at once: each without the mean of its batch."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Trembling(nn.Module):
    """Chance in each pixel, as of a sum whose order is not fixed, or much more of it."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x + self.size * torch.randn_like(x)


IMAGE, SCORES = ArraySpec("image", (1, 4, 4)), ArraySpec("scores", (3,))
CASES = [
    *(
        Case(f"sigma {sigma}", ConfigurationError, ["sigma: expected a finite number > 0", f"got {sigma!r}"],
             {"sigma": sigma})
        for sigma in (0, 0.0, -0.25, float("nan"), float("inf"), True, "0.25")
    ),
    Case("n < n0", ConfigurationError, ["at least n0 = 100", "got 99", "Raise n"], {"n": 99}),
    Case("n0", ConfigurationError, ["n0: expected a whole number >= 1, got 0"], {"n0": 0}),
    Case("n", ConfigurationError, ["n: expected a whole number", "got 1000.0"], {"n": 1e3}),
    Case("alpha 0", ConfigurationError, ["alpha: expected a finite number in (0, 1)"], {"alpha": 0.0}),
    Case("alpha 1", ConfigurationError, ["got 1.0"], {"alpha": 1.0}),
    Case("block", ConfigurationError, ["block:", "got -1"], {"block": -1}),
    Case("seed", ConfigurationError, ["seed:", "got -1"], {"seed": -1}),
    Case("above 1", DataError, ["[0, 1]", "1.001 in image 2", "1 of 4"], images=one_bad(1.001)),
    Case("below 0", DataError, ["got -0.01", "in image 2"], images=one_bad(-0.01)),
    Case("nan", DataError, ["nan", "in image 2"], images=one_bad(float("nan"))),
    Case("bytes scale", DataError, ["images / 255"], images=pictures(4) * 255),
    Case("bytes", DataError, ["float tensor", "torch.uint8"], images=pictures(4).byte()),
    Case("numpy", DataError, ["float tensor", "ndarray", "from_numpy"], images=pictures(4).numpy()),
    Case("no channels", DataError, ["(4, 4, 4)"], images=pictures(4)[:, 0]),
    Case("channels", DataError, ["expected (1, 4, 4) each, got (3, 4, 4)", "channels"],
         images=pictures(4).expand(4, 3, 4, 4)),
    Case("size", DataError, ["got (1, 4, 3)"], images=pictures(4)[..., :3]),
    Case("channels last", DataError, ["permute(0, 3, 1, 2)"], images=pictures(4).permute(0, 2, 3, 1)),
    Case("labels beyond", DataError, ["from 0 to 2", "got 3 for image 1"],
         labels=torch.tensor([0, 3, 1, 2])),
    Case("labels below", DataError, ["got -1 for image 0"], labels=torch.tensor([-1, 0, 1, 2])),
    Case("labels count", DataError, ["expected 4 whole numbers, got torch.int64 (3,)"],
         labels=torch.tensor([0, 1, 2])),
    Case("labels list", DataError, ["got list", "Give a tensor"], labels=[0, 1, 2, 0]),
    Case("labels float", DataError, ["torch.float32"], labels=torch.zeros(4)),
    Case("classes", DataError, ["expected 3, as many as the box gives scores, got 4"], {"classes": 4}),
    Case("no classes", DataError, ["how many labels the box knows", "got None", "--box-gives labels"],
         box=Label()),
    Case("two inputs", ProblemError, ["one image of floats"],
         box=box(inputs=(IMAGE, ArraySpec("other", ())), outputs=(SCORES,))),
    Case("whole numbers in", ProblemError, ["one image of floats"],
         box=box(inputs=(ArraySpec("image", (1, 4, 4), "uint8"),))),
    Case("matrix out", ProblemError, ["one vector of scores or one label"],
         box=box(outputs=(ArraySpec("scores", (3, 2)),))),
    Case("no box", ProblemError, ["expected a BlackBoxFunction, got Denoiser"], box=Denoiser()),
    Case("narrower", ProblemError, ["expected (2, 1, 4, 4) back", "(2, 1, 2, 2)", "pad"],
         denoiser=nn.Conv2d(1, 1, 3)),
    Case("more channels", ProblemError, ["(2, 2, 4, 4)"], denoiser=nn.Conv2d(1, 2, 3, padding=1)),
    Case("other channels", ProblemError, ["expected (2, 1, 4, 4) back", "got an error"],
         denoiser=nn.Conv2d(3, 1, 1)),
    Case("merged rows", ProblemError, ["expected (2, 1, 4, 4) back", "got (1, 1, 4, 4)"], denoiser=Mean()),
    Case("batch mean", ProblemError, ["depends on no other image", "track_running_stats"],
         denoiser=Centred()),
    Case("batch statistics", ProblemError, ["depends on no other image"],
         denoiser=nn.BatchNorm2d(1, track_running_stats=False)),
    Case("chance", ProblemError, ["on no chance", "others in each run"], denoiser=Trembling(0.01)),
    Case("no module", ProblemError, ["expected a torch.nn.Module"], denoiser=abs),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@suppress_type_checks
def test_bad_input_costs_nothing(case):
    settings = {"sigma": 0.25, "n": 1000} | (case.settings or {})
    made = {key: settings.pop(key) for key in ("sigma", "seed", "block", "classes") if key in settings}
    asked = Linear() if case.box is None else case.box
    images = pictures(4) if case.images is None else case.images
    with pytest.raises(case.error) as caught:
        smoothed = SmoothedClassifier(asked, case.denoiser, **made)
        smoothed.certify(images, case.labels, **settings)
    assert type(caught.value) is case.error
    for word in case.words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    if not isinstance(asked, nn.Module):
        assert asked.ledger.rows_asked == 0


def test_labels_that_the_box_should_not_give_are_refused_when_it_gives_them():
    with pytest.raises(DataError, match="from 0 to 1, got 2"):
        SmoothedClassifier(Label(), sigma=0.25, classes=2).predict(pictures(40), n=10)
    half = from_callable(
        lambda images: np.full((len(images), 1), 0.5),
        inputs=(IMAGE,), outputs=(ArraySpec("label", (1,)),), vectorized=True,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"got 0\.5"):
        SmoothedClassifier(half, sigma=0.25, classes=2).predict(pictures(1))


def test_rounding_of_a_large_image_is_no_dependence_on_others():
    shape = ArraySpec("image", (1, 256, 256))
    inner = from_callable(lambda x: x[:, 0, 0, :3], inputs=(shape,), outputs=(SCORES,), vectorized=True)
    smoothed = SmoothedClassifier(inner, Trembling(1e-5), sigma=0.25)
    with pytest.warns(UserWarning, match="with N = "):
        found = smoothed.certify(torch.full((1, 1, 256, 256), 0.5), torch.tensor([0]), n0=2, n=4)
    assert len(found) == 1
