"""The settings of denoised smoothing and its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tasks.denoised_smoothing import limits
from tasks.denoised_smoothing.limits import read

__all__ = ["DESCRIPTION", "PRESETS", "Config"]

DESCRIPTION = (
    "A certified defence of a classifier that only answers queries. A denoiser is trained in front of "
    "it, and the two are certified by randomized smoothing. Compared are no denoiser (none), one trained "
    "on images alone (mse), one trained through the classifier by backpropagation, for reference "
    "(fo-ds), and from queries alone: with gradients at the classifier's input (zo-ds) or in a latent "
    "space (zo-ae-ds), of the denoiser's own weights (deepzero), or through a student network that "
    "learns the answers (student, recommended). The queries of each are counted and equal. A name may "
    "carry directions and a budget: zo-ds:cge@2500000."
)


@dataclass(frozen=True)
class Config:
    """Settings of a run. Images are in [0, 1]; a query is one image that is sent to the classifier."""

    methods: tuple[str, ...] = ("none", "mse", "zo-ds", "deepzero", "student", "fo-ds")
    """What is compared, in the order of the table: none, mse, fo-ds, zo-ds, zo-ae-ds, deepzero, student.
    zo-ds and zo-ae-ds may name directions (zo-ds:cge, :rge, :orthogonal, :dct, :wide), and all that train
    through the classifier a budget of their own (student@5000)."""

    box: str = "b"
    """The classifier: "a" or "b" (scikit-learn networks on digits that are fragile, b more so), "forest",
    "svm", an ONNX file, or any black box as `blackbox check` takes it, such as file.py:Class."""
    box_arguments: tuple[str, ...] = ()
    """What the last is made with: NAME=VALUE."""
    box_gives: str = "logits"
    """What your own classifier answers: logits, probabilities or labels; the embedded ones give any."""
    classes: int | None = None
    """How many it knows, where it answers labels; None for as many as the images have."""
    answers: str = "logits"
    """What is asked of it: logits, probabilities or labels."""
    decimals: int | None = None
    """To how many decimals it rounds probabilities; None for all."""
    per_second: float | None = None
    """The most queries in a second; None for no limit."""
    attempts: int = 1
    """How often a query that failed is asked in all; repetitions count in the budget, not in the table."""
    budget: int | None = None
    """The most queries of the whole run, certification included, over all resumptions; None for no limit."""
    query_log: bool = False
    """Whether each answer is kept in a file of the run and never paid for twice, also after a kill."""
    query_log_block: int = 1
    """Queries that are sent, then kept, at a time: a kill pays for these at most twice. Raise it for a
    service that works on several at once, or a classifier that takes microseconds."""

    images: Path | None = None
    """A folder of pictures (CLASS/picture.png), HDF5 or .npz; None for scikit-learn's digits."""
    image_size: int | None = None
    """Height and width to which pictures of a folder are scaled and cropped; None to leave them."""
    split: tuple[float, ...] = (0.7, 0.1, 0.2)
    """Shares to train on, to choose by and to certify, where the images are not divided already."""
    train_images: int | None = None
    """How many of the training images are used through the classifier; None for all. The stability loss
    asks for each of them once."""

    sigma: float = 0.25
    """Standard deviation of the noise."""
    depth: int = 4
    """Convolutions of the denoiser; published: 17."""
    width: int = 8
    """Its channels; published: 64."""
    batch_norm: bool = False
    """Whether it has batch norm; published: yes."""
    latent: int = 8
    """zo-ae-ds: numbers of a latent vector; with convolutions its channels."""
    latent_widths: tuple[int, ...] = (64,)
    """zo-ae-ds: features between image and latent vector; with convolutions channels, each halving it."""
    latent_convolutions: bool = False
    """zo-ae-ds: whether the autoencoder is made of convolutions."""

    loss: str = "stability"
    """Of all methods through the classifier: "stability", cross-entropy to its own prediction on the clean
    image, or "labels", to the true ones."""
    mse_weight: float = 0.0
    """What the mean square error of the denoised image, times the number of its pixels, is added with."""
    start: str = "mse"
    """What they start from: the mse denoiser, or "scratch"."""
    batch: int = 64
    """Images in an optimiser step of mse, fo-ds and student."""
    learning_rate: float = 0.005
    """Of Adam in mse, fo-ds and student, at the start; it falls to zero along a cosine."""
    zo_learning_rate: float = 0.002
    """Likewise, in zo-ds, zo-ae-ds and deepzero, whose steps are few and noisy."""
    mse_steps: int = 2000
    """Optimiser steps of mse, and of the autoencoder."""

    queries: int = 20_000
    """Budget of each zeroth-order method: training, mu, validation and what the loss asks, all counted."""
    fo_queries: int = 64_000
    """Rows of fo-ds through the classifier, validation included."""
    zo_batch: int = 16
    """Images in an optimiser step of zo-ds and zo-ae-ds."""
    directions: str = "dct"
    """Of zo-ds and zo-ae-ds: cge, one query a pixel; rge, Gaussian; orthogonal; dct, orthogonal ones of the
    lowest cosines (in a latent space: orthogonal)."""
    direction_count: int = 8
    """Directions for each image, for all but cge."""
    modes: int = 4
    """Cosines of dct along each axis: modes x modes of each channel."""
    scheme: str = "forward"
    """Differences: "forward", or "antithetic" with twice the queries."""
    mu: float | None = None
    """Smoothing parameter at the classifier's input, of a direction's length; None to measure it: the step
    whose slopes agree best with those of a smaller one, between noise and curvature. It also sets that of
    deepzero's weights, which move the image as far."""
    mu_queries: int = 500
    """The most queries for that."""
    wide_mu: float = 1.0
    """Smoothing parameter of zo-ds:wide, and where none can be measured since the classifier is flat: the
    length of a direction over the whole image. Single numbers then move by sigma."""
    coordinates: int = 64
    """Weights that deepzero perturbs in a step, drawn anew every step."""
    ratios: str = "zo-grasp"
    """How they spread over the layers: uniform, zo-grasp, zo-snip or magnitude."""
    ratio_directions: int = 8
    """Random directions of zo-grasp and zo-snip."""
    deepzero_batch: int = 8
    """Images in an optimiser step of deepzero."""
    evaluator: str = "auto"
    """How deepzero evaluates many weights at once: loop, stacked, auto, or another that zo knows."""

    student_steps: int = 2000
    """Optimiser steps of student; its queries are spread over them."""
    student_width: int = 128
    """Features of its hidden layers."""
    student_window: int = 20_000
    """Answers that it learns from, the oldest going."""
    student_batch: int = 256
    """Answers in a step of its learning."""
    student_learning_rate: float = 0.003
    """Of its Adam."""
    student_first: float = 0.1
    """Share of its queries that are asked before the first step."""
    student_first_steps: int = 400
    """Steps of learning from these."""

    validation_images: int = 197
    """Noisy images by which weights are chosen, through the classifier itself."""
    validations: int = 5
    """How often, after once for the start: where no weights are better than the start, it is kept."""
    certify_images: int = 100
    """Test images that are certified."""
    n: int = 1000
    """Queries that estimate the top class's probability; published: 100,000. N caps the radius."""
    n0: int = 100
    """Queries that choose the top class."""
    alpha: float = 0.001
    """Probability that a certificate is wrong."""
    checkpoint_every: int = 200
    """Optimiser steps between checkpoints."""
    threads: int = 1
    """Of torch on the CPU; results are equal to the bit for equal numbers."""

    def __post_init__(self) -> None:
        """Refuse what would fail, or mislead, only after queries have been paid for."""
        counts = (
            "batch mse_steps queries fo_queries zo_batch direction_count modes mu_queries coordinates width "
            "ratio_directions deepzero_batch student_steps student_width student_window student_batch "
            "student_first_steps validation_images validations certify_images n n0 checkpoint_every threads "
            "latent attempts query_log_block"
        )
        for name in counts.split():
            if not getattr(self, name) >= 1:  # "not", here and below: every comparison with NaN is false
                self._refuse(name, "a whole number >= 1")
        for name in "image_size train_images budget".split():
            if getattr(self, name) is not None and not getattr(self, name) >= 1:
                self._refuse(name, "a whole number >= 1, or None")
        for name in "sigma learning_rate zo_learning_rate wide_mu student_learning_rate".split():
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "a finite number > 0")
        for name in "mu per_second".split():
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "a finite number > 0, or None")
        if self.classes is not None and not self.classes >= 2:
            self._refuse("classes", "a whole number >= 2, or None")
        if self.decimals is not None and not 0 <= self.decimals <= 7:
            self._refuse("decimals", "0 to 7, or None")
        if not self.depth >= 2:
            self._refuse("depth", "at least 2 convolutions")
        if not 0 <= self.mse_weight < math.inf:
            self._refuse("mse_weight", "a finite number >= 0")
        for name in "alpha student_first".split():
            if not 0 < getattr(self, name) < 1:
                self._refuse(name, "a number between 0 and 1")
        if not self.n >= self.n0:
            self._refuse("n", f"at least n0 = {self.n0}")
        if not self.latent_widths or not all(width >= 1 for width in self.latent_widths):
            self._refuse("latent_widths", "whole numbers >= 1, at least one")
        if len(self.split) != 3 or not all(share > 0 for share in self.split):
            self._refuse("split", "three shares > 0: to train on, to choose by, to certify")
        for name, choices in (
            ("answers", limits.ANSWERS),
            ("box_gives", limits.ANSWERS),
            ("loss", limits.LOSSES),
            ("start", limits.STARTS),
            ("directions", limits.DIRECTIONS),
            ("scheme", limits.SCHEMES),
            ("ratios", limits.RATIOS),
        ):
            if getattr(self, name) not in choices:
                self._refuse(name, f"one of {', '.join(choices)}")
        if self.decimals is not None and self.answers != "probabilities":
            self._refuse("answers", "probabilities, since decimals are given")
        limits.check_methods(self.methods, self.start)

    def queries_of(self, method: str) -> int:
        """The budget of a method: its own, or that of its kind; 0 where it asks nothing."""
        asked = read(method)
        if asked.queries is not None:
            return asked.queries
        return self.queries if asked.zero_order else self.fo_queries if asked.family == "fo-ds" else 0

    def _refuse(self, name: str, expected: str) -> None:
        raise limits.refuse(name, expected, getattr(self, name))


SMALL = Config(
    methods=(
        "none",
        "mse",
        "zo-ds:cge",
        "zo-ds:rge",
        "zo-ds:dct",
        "zo-ae-ds:cge",
        "deepzero",
        "student@5000",
        "student",
        "zo-ds:dct@250000",
        "zo-ae-ds:cge@250000",
        "deepzero@250000",
        "zo-ds:dct@2500000",
        "fo-ds",
    ),
    fo_queries=250_000,
    student_steps=4000,
    certify_images=200,
    n=10_000,
)
"""The demo's digits with the prototype's budgets and N = 10,000, 200 images."""

PAPER = Config(
    methods=("none", "mse", "zo-ae-ds:cge", "deepzero", "student", "fo-ds"),
    box="",
    images=None,
    image_size=224,
    depth=17,
    width=64,
    batch_norm=True,
    latent=6,
    latent_widths=(16, 32, 64, 64),
    latent_convolutions=True,
    batch=32,
    learning_rate=1e-4,
    zo_learning_rate=1e-4,
    mse_steps=30_000,
    queries=1_000_000,
    fo_queries=1_000_000,
    zo_batch=8,
    coordinates=192,
    ratio_directions=192,
    train_images=5000,
    student_steps=20_000,
    student_window=2000,
    student_batch=64,
    validation_images=500,
    certify_images=500,
    n=10_000,
    query_log=True,
)
"""The published setting, ImageNet-10 at 224 x 224 and sigma .25: give your classifier as `--config.box`
(model.onnx or file.py:Class) and your pictures as `--config.images`."""

PRESETS = {"demo": Config(), "small": SMALL, "paper": PAPER}
