"""The settings of denoised smoothing, its presets, and the parsing of its methods' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import OmitArgPrefixes, arg, configure

from blackbox.checks import nearest
from tasks import configuration
from tasks.applications.denoised_smoothing.certification.bound import Settings
from tasks.configuration import Count, NamesCode, NotNegative, Positive, names, refused

WITHOUT_QUERIES = ("none", "mse")
ZERO_ORDER = ("zo-ds", "zo-ae-ds", "deepzero", "student")  # held to a budget of queries
FAMILIES = (*WITHOUT_QUERIES, "fo-ds", *ZERO_ORDER)
WIDE = "wide"  # central differences with a wide step, for a box that gives labels alone
CNN = "cnn"  # the classifier that ships for `shapes`
SHIPPED = ("a", "b", "forest", "svm", CNN)
KINDS = ("cge", "rge", "orthogonal", "dct", WIDE)  # of directions

Answer = Literal["logits", "probabilities", "labels"]
Open = Annotated[float, Field(gt=0, lt=1)]
_FORM = re.compile(r"(?P<family>[a-z-]+)(:(?P<kind>[a-z]+))?(@(?P<queries>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Variant:
    """A method's name, read: "zo-ds:cge@2500000".

    Attributes:
        name: All of it.
        family: How it trains, one of `FAMILIES`.
        kind: The directions of "zo-ds" and "zo-ae-ds", one of `KINDS`.
        queries: Its own budget; None for the configuration's.
    """

    name: str
    family: str
    kind: str = "dct"
    queries: int | None = None


def read(name: str) -> Variant:
    """A method of this problem from its name.

    Raises:
        ConfigurationError: There is none of that name.
    """
    form = _FORM.fullmatch(name)
    if form is None or form["family"] not in FAMILIES:
        raise refused("methods", f"known ones ({nearest(re.split('[:@]', name)[0], FAMILIES)})", name)
    family, kind = form["family"], form["kind"]
    if kind is not None and (family not in ("zo-ds", "zo-ae-ds") or kind not in KINDS):
        raise refused("methods", f"zo-ds or zo-ae-ds with one of {', '.join(KINDS)} after the colon", name)
    if form["queries"] is not None and family in WITHOUT_QUERIES:
        raise refused("methods", f"{family} without a budget: it asks nothing", name)
    return Variant(name, family, kind or "dct", int(form["queries"]) if form["queries"] else None)


def is_own(name: str) -> bool:
    """Say whether a method is this problem's, and not one that all problems have."""
    return re.split("[:@]", name)[0] in FAMILIES


def ships(box: str, arguments: Sequence[str]) -> bool:
    """Say whether this project, or an installed package that names it, computes a classifier alone.

    A model in ONNX format is no code. A server is asked about: what is sent to it leaves the machine.
    """
    if box in SHIPPED or box.endswith(".onnx"):
        return True
    return box != "um-bridge" and (box in names.FUNCTIONS or (box in names.functions() and not arguments))


@configure(OmitArgPrefixes)
@dataclass(frozen=True)
class ZerothOrder(configuration.ZerothOrder):
    """Settings of methods that train by differences of values."""

    input_directions: Annotated[Count, arg(aliases=("--input-q",))] = 8
    """Directions for each image, for all but cge."""
    input_mu: Positive | None = None
    """Smoothing parameter at the classifier's input, of a direction's length; None to measure it: the step
    whose slopes agree best with those of a smaller one, between noise and curvature."""
    mu: Positive | None = None
    """Smoothing parameter of the weights, in deepzero; None for the step that moves an image as far as
    input_mu."""


@dataclass(frozen=True)
class Config(configuration.Config):
    """Settings of a run. Images are in [0, 1]; a query is one image that is sent to the classifier."""

    methods: tuple[str, ...] = ("none", "mse", "zo-ds", "deepzero", "student", "fo-ds")
    """What is compared, in the order of the table: none, mse, fo-ds, zo-ds, zo-ae-ds, deepzero, student.
    zo-ds and zo-ae-ds may name directions: zo-ds:cge, one query a pixel; :rge, Gaussian; :orthogonal; :wide,
    for labels; :dct, which others are too, orthogonal ones of the lowest cosines (in a latent space just
    orthogonal). All that train through the classifier may have a budget of their own (student@5000)."""

    box: Annotated[str, NamesCode(ships, arguments="box_arguments")] = "b"
    """The classifier: "a" or "b" (scikit-learn networks on digits that are fragile, b more so), "forest",
    "svm", "cnn" (a convolutional network on the shapes of 32 x 32 pixels in colour), an ONNX file, or any
    black box as `blackbox check` takes it, such as file.py:Class."""
    box_arguments: tuple[str, ...] = ()
    """What the last is made with: NAME=VALUE."""
    box_gives: Answer = "logits"
    """What your own classifier answers: logits, probabilities or labels; the embedded ones give any."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """How many it knows, where it answers labels; None for as many as the images have."""
    answers: Answer | None = None
    """What is asked of it: logits, probabilities or labels; None for what it gives."""
    decimals: Annotated[int, Field(ge=0, le=7)] | None = None
    """To how many decimals it rounds probabilities; None for all."""
    per_second: Positive | None = None
    """The most queries in a second; None for no limit."""
    attempts: Count = 1
    """How often a query that failed is asked in all; repetitions count in the budget, not in the table."""
    rows: Count | None = None
    """The most queries of the whole run, certification included, over all resumptions; None for no limit."""
    query_log: bool = False
    """Whether each answer is kept in a file of the run and never paid for twice, also after a kill."""
    query_log_block: Count = 1
    """Queries that are sent, then kept, at a time: a kill pays for these at most twice. Raise it for a
    service that works on several at once, or a classifier that takes microseconds."""

    images: Path | None = None
    """A folder of pictures (CLASS/picture.png), HDF5 or .npz; None for those of the classifiers that ship:
    scikit-learn's digits, or shapes."""
    image_size: Count | None = None
    """Height and width to which pictures of a folder are scaled and cropped; None to leave them."""
    split: tuple[Positive, Positive, Positive] = (0.7, 0.1, 0.2)
    """Shares to train on, to choose by and to certify, where the images are not divided already."""
    train_images: Count | None = None
    """How many of the training images are used through the classifier; None for all. The stability loss
    asks for each of them once."""

    sigma: Positive = 0.25
    """Standard deviation of the noise."""
    depth: Annotated[int, Field(ge=2)] = 4
    """Convolutions of the denoiser; published: 17."""
    width: Count = 8
    """Its channels; published: 64."""
    batch_norm: bool = False
    """Whether it has batch norm; published: yes."""
    latent: Count = 8
    """zo-ae-ds: numbers of a latent vector; with convolutions its channels."""
    latent_widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (64,)
    """zo-ae-ds: features between image and latent vector; with convolutions channels, each halving it."""
    latent_convolutions: bool = False
    """zo-ae-ds: whether the autoencoder is made of convolutions."""

    loss: Literal["stability", "labels"] = "stability"
    """Of all methods through the classifier: "stability", cross-entropy to its own prediction on the clean
    image, or "labels", to the true ones."""
    mse_weight: NotNegative = 0.0
    """What the mean square error of the denoised image, times the number of its pixels, is added with."""
    start: Literal["mse", "scratch"] = "mse"
    """What they start from: the mse denoiser, or "scratch"."""
    steps: Count = 2000
    """Optimiser steps of mse and of the autoencoder; of the others the budget of queries gives them."""
    batch: Count = 64
    """Images in an optimiser step of mse, fo-ds and student."""
    learning_rate: Positive = 0.005
    """Of Adam in mse, fo-ds and student, at the start."""
    zo_learning_rate: Positive = 0.002
    """The same in zo-ds, zo-ae-ds and deepzero, whose steps are few and noisy."""

    queries: Count = 20_000
    """Budget of each zeroth-order method: training, mu, validation and what the loss asks, all counted."""
    fo_queries: Count = 64_000
    """Rows of fo-ds through the classifier, validation included."""
    zo_batch: Count = 16
    """Images in an optimiser step of zo-ds and zo-ae-ds."""
    modes: Count = 4
    """Cosines of dct along each axis: modes x modes of each channel."""
    mu_queries: Count = 500
    """The most queries for measuring."""
    wide_mu: Positive = 1.0
    """Smoothing parameter of zo-ds:wide, and where none can be measured since the classifier is flat: the
    length of a direction over the whole image. Single numbers then move by sigma."""
    ratios: Literal["uniform", "zo-grasp", "magnitude"] = "zo-grasp"
    """How they spread over the layers: uniform, zo-grasp or magnitude."""
    ratio_directions: Count = 8
    """Random directions of zo-grasp."""
    deepzero_batch: Count = 8
    """Images in an optimiser step of deepzero."""
    evaluator: str = "auto"
    """How deepzero evaluates many weights at once: loop, stacked, auto, or another that zo knows."""

    student_steps: Count = 2000
    """Optimiser steps of student; its queries are spread over them."""
    student_width: Count = 128
    """Features of its hidden layers."""
    student_window: Count = 20_000
    """Answers that it learns from, the oldest going."""
    student_batch: Count = 256
    """Answers in a step of its learning."""
    student_learning_rate: Positive = 0.003
    """Of its Adam."""
    student_first: Open = 0.1
    """Share of its queries that are asked before the first step."""
    student_first_steps: Count = 400
    """Steps of learning from these."""
    student_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of what it learns, where the classifier answers labels alone: the share of a label
    that is spread over all classes (Szegedy et al. 2016)."""

    validation_images: Count = 197
    """Noisy images by which weights are chosen, through the classifier itself."""
    validations: Count = 5
    """How often, after once for the start: where no weights are better than the start, it is kept."""
    certify_images: Count = 100
    """Test images that are certified."""
    n: Count = 1000
    """Queries that estimate the top class's probability; published: 100,000. N caps the radius."""
    n0: Count = 100
    """Queries that choose the top class."""
    alpha: Open = 0.001
    """Probability that a certificate is wrong."""
    zeroth_order: ZerothOrder = ZerothOrder()
    """Settings of methods that train by differences of values."""
    device: Literal["cpu"] = "cpu"
    """Where the network is."""

    def __post_init__(self) -> None:
        """Refuse what would fail, or mislead, only after queries have been paid for."""
        super().__post_init__()
        _ = self.smoothing  # which refuses n below n0
        if self.decimals is not None and self.asked != "probabilities":
            raise refused("answers", "probabilities, since decimals are given", self.asked)
        for place, name in enumerate(self.methods):
            of_task = is_own(name)
            if of_task and read(name).family not in WITHOUT_QUERIES and self.start == "mse":
                if "mse" not in self.methods[:place]:
                    raise refused(
                        "methods", f"mse before {name}, which starts from its weights", self.methods
                    )
            if name in ("cge", "sparse-cge", "rge") and self.zeroth_order.mu is None:
                raise refused("mu", f"a number for {name}", None)
            if name == "row-rge" and self.zeroth_order.input_mu is None:
                raise refused("input_mu", f"a number for {name}", None)

    @property
    def smoothing(self) -> Settings:
        """Settings of the certificates."""
        return Settings(self.sigma, n=self.n, n0=self.n0, alpha=self.alpha)

    @property
    def gives(self) -> Answer:
        """The kind of the classifier's answers; shipped ones give logits."""
        return "logits" if self.box in SHIPPED else self.box_gives

    @property
    def asked(self) -> Answer:
        """The kind of answers that it is asked for."""
        return self.answers or self.gives

    def queries_of(self, method: str) -> int:
        """The budget of a method of this problem: its own, or that of its kind; 0 where it asks nothing."""
        reading = read(method)
        if reading.queries is not None:
            return reading.queries
        return self.queries if reading.family in ZERO_ORDER else self.fo_queries * (reading.family == "fo-ds")


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
    steps=30_000,
    queries=1_000_000,
    fo_queries=1_000_000,
    zo_batch=8,
    zeroth_order=ZerothOrder(coordinates=192),
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
"""The published setting, ImageNet-10 at 224 x 224 and sigma .25: give your classifier as `--box`
(model.onnx or file.py:Class) and your pictures as `--images`."""

_STUDENT = Config(
    methods=("mse", "student", "fo-ds"), fo_queries=250_000, loss="labels", mse_weight=0.1, validations=1
)

FEW = replace(_STUDENT, queries=1000, validation_images=100, student_first=0.5)
"""The digits with 1,000 queries: true labels, which cost none, a tenth of the square error, half of the
queries first, and one comparison with the start, at the end."""

LABELS = replace(_STUDENT, methods=("mse", "student"), answers="labels", student_smoothing=0.1)
"""The digits where the classifier answers labels alone, 20,000 queries."""

SHAPES = replace(
    _STUDENT,
    box=CNN,
    mse_weight=0.01,
    steps=1000,
    batch=32,
    learning_rate=0.002,
    student_first=0.5,
    student_first_steps=2000,
    student_steps=1000,
    student_batch=128,
    fo_queries=32_800,
    validation_images=400,
    n=500,
)
"""Images of 3,072 numbers: `shapes` and a convolutional network that knows them."""

PRESETS = {
    "demo": Config(),
    "small": SMALL,
    "paper": PAPER,
    "few": FEW,
    "labels": LABELS,
    "shapes": SHAPES,
}
