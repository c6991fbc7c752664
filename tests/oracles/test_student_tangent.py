"""`StudentTangent` against autograd: its products to rounding, and what it comes to after some learning."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.zo.row_boxes import weights
from zo.tangents import CallPairs, StudentTangent

LOSSES = ("squared", "kl", "kl-logits", "labels")


def layers(*widths: int, seed: int = 0, bend: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        linear = [nn.Linear(*pair) for pair in pairwise(widths)]
    return nn.Sequential(*[part for layer in linear for part in (layer, bend())][:-1])


def values(z: Tensor, y: Tensor) -> CallPairs:
    """A call."""
    size_in, size_out = z.shape[1], y.shape[1]
    inputs, outputs = (ArraySpec("x", (size_in,)),), (ArraySpec("y", (size_out,)),)
    return CallPairs(inputs, outputs, z, y)


def learned(student: StudentTangent, pairs: CallPairs, steps: int = 1) -> StudentTangent:
    student.see(pairs)
    for _ in range(steps):
        student.learn()
    return student


def cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


# Products


def bent(z: Tensor, loss: str = "squared") -> Tensor:
    """A box for each loss: three numbers of very different size, to four."""
    scores = torch.sin((z - torch.tensor([5e3, 0.0, 0.0])) / torch.tensor([1e2, 1.0, 1e-3]) @ weights(3, 4))
    if loss == "kl":
        return scores.softmax(dim=1)
    if loss == "labels":
        return functional.one_hot(scores.argmax(dim=1), 4).double()
    return 100 + 10 * scores


def states(rows: int, seed: int) -> Tensor:
    return torch.tensor([5e3, 0.0, 0.0]) + weights(rows, 3, seed=seed) * torch.tensor([1e2, 1.0, 1e-3])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("standardise", [True, False])
def test_the_vjp_is_autograds_through_network_and_standardisation(loss, standardise):
    """With mean and spread by NumPy over all that was seen, in two calls."""
    network = layers(3, 8, 4).double()
    student = StudentTangent(network, loss=loss, standardise=standardise, batch=16)
    seen = [states(30, seed) for seed in (1, 2)]
    for z in seen:
        learned(student, values(z, bent(z, loss)))
    x = torch.cat(seen).numpy()
    y = np.concatenate([bent(z, loss).numpy() for z in seen])

    def function(z: Tensor, p: Tensor) -> Tensor:
        inputs = (z - torch.from_numpy(x.mean(0))) / torch.from_numpy(x.std(0)) if standardise else z
        scores = network(inputs)
        if loss == "squared":
            return torch.from_numpy(y.std(0)) * scores if standardise else scores
        if loss == "kl-logits":
            return scores - scores.mean(dim=1, keepdim=True)
        if loss == "labels":
            return torch.exp(scores) / torch.exp(scores).sum(dim=1, keepdim=True)
        return scores @ (torch.diag(p) - torch.outer(p, p))  # a softmax's derivative at the box's p

    z, v, d = states(7, 3), weights(7, 4, seed=4), weights(7, 3, seed=5)
    pairs = values(z, bent(z, loss))
    expected = []
    for row in range(7):
        jacobian = torch.autograd.functional.jacobian(
            lambda row_z, row=row: function(row_z[None], pairs.y[row])[0], z[row]
        )
        expected.append((v[row] @ jacobian, d[row] @ jacobian.T))
    assert torch.allclose(student.at(pairs).pull(v), torch.stack([e[0] for e in expected]), rtol=1e-9)
    assert torch.allclose(student.at(pairs).push(d), torch.stack([e[1] for e in expected]), rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_vjp_and_jvp_are_adjoint_and_the_values_slope(loss):
    """<J d, v> = <d, J^T v>; and J is the slope of the predicted values where the box agrees with them."""
    student = StudentTangent(layers(3, 8, 4).double(), loss=loss)
    z = states(40, 1)
    student.fit(z, bent(z, loss), steps=20)
    pairs = values(z, student.at(values(z, bent(z, loss))).values)
    d, v = weights(40, 3, seed=6) * torch.tensor([1e2, 1.0, 1e-3]), weights(40, 4, seed=7)
    forward = student.at(pairs).push(d)
    assert torch.allclose(
        (forward * v).sum(-1), (d * student.at(pairs).pull(v)).sum(-1), rtol=1e-9, atol=1e-9
    )
    ahead, behind = (student.at(values(z + step * d, pairs.y)).values for step in (1e-5, -1e-5))
    assert torch.allclose((ahead - behind) / 2e-5, forward, rtol=1e-5, atol=1e-6)


# What it comes to


def smooth(z: Tensor) -> Tensor:
    """Inputs of sizes from 1e-3 to 1e3 about 5 times that; the truth in float64."""
    z = z.double() / SIZES.double() - 5
    return torch.sin(z @ weights(6, 5, seed=1) / 2) + 0.3 * z[:, :5] * z[:, 1:]


SIZES = 10.0 ** torch.linspace(-3, 3, 6)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_on_a_smooth_box_the_vjp_comes_to_the_truth_and_without_standardising_it_does_not(dtype):
    """On held-out rows; the bounds are what is asked for, not what was seen."""
    z = ((5 + weights(2000, 6, seed=2)) * SIZES).to(dtype)
    new = ((5 + weights(300, 6, seed=3)) * SIZES).to(dtype)
    v = weights(300, 5, seed=4)
    point = new.double().requires_grad_()
    truth = torch.autograd.grad(smooth(point), point, v)[0]
    cosines = {}
    for standardise in (True, False):
        student = StudentTangent(layers(6, 64, 64, 5).to(dtype), standardise=standardise, batch=64)
        student.fit(z, smooth(z).to(dtype), steps=600)
        mine = student.at(values(new, smooth(new).to(dtype))).pull(v.to(dtype))
        assert mine.dtype == dtype
        cosines[standardise] = cosine(mine * SIZES, truth * SIZES)  # each input in its own size
    assert cosines[True] > 0.95 and cosines[False] < 0.6


# Frozen classifiers


class Classifier(BlackBoxFunction):
    """Probabilities of a scikit-learn model, or labels as one-hot vectors."""

    inputs = (ArraySpec("image", (64,)),)
    outputs = (ArraySpec("probabilities", (10,)),)

    def __init__(self, model, labels: bool = False) -> None:
        super().__init__()
        self.model, self.labels = model, labels

    def evaluate_rows(self, image: np.ndarray) -> np.ndarray:
        shares = self.model.predict_proba(image)
        return (np.eye(10)[shares.argmax(axis=1)] if self.labels else shares).astype(image.dtype)


@pytest.fixture(scope="module")
def digits():
    """Images of numbers from 0 to 1: 1,200 to train with, 597 held out."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return torch.from_numpy(images[order] / 16).float(), torch.from_numpy(labels[order])


@pytest.fixture(scope="module")
def mlp(digits):
    images, labels = (tensor[:1200].numpy() for tensor in digits)
    # To a tolerance, in a number of rounds that it reaches: it would warn, and warnings are errors.
    model = MLPClassifier((64,), max_iter=300, random_state=0)
    return make_pipeline(StandardScaler(), model).fit(images, labels)


def noisy(digits, rows: slice, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = (tensor[rows] for tensor in digits)
    return images + 0.25 * weights(*images.shape, seed=seed).float(), labels


@pytest.fixture(scope="module")
def denoiser(digits) -> nn.Module:
    """From least squares: where denoised smoothing starts from."""
    network = layers(64, 64, 64, seed=1, bend=nn.ReLU)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(300):
        loss = (network(noisy(digits, slice(1200), step)[0]) - digits[0][:1200]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def differentiable(mlp, image: Tensor) -> Tensor:
    """The same classifier, written in torch."""
    scaler, model = mlp
    hidden = (image.double() - torch.from_numpy(scaler.mean_)) / torch.from_numpy(scaler.scale_)
    weight, bias = (
        [torch.from_numpy(array).double() for array in group] for group in (model.coefs_, model.intercepts_)
    )
    return (torch.relu(hidden @ weight[0] + bias[0]) @ weight[1] + bias[1]).softmax(dim=1)


def log_loss(p: Tensor, labels: Tensor) -> Tensor:
    return -p.gather(1, labels[:, None])[:, 0].clamp(min=1e-4).log()


def share_right(p: Tensor, labels: Tensor) -> Tensor:
    return -p.gather(1, labels[:, None])[:, 0]


def squared_loss(p: Tensor, labels: Tensor) -> Tensor:
    return (p - functional.one_hot(labels, 10)).square().sum(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "standardise", "bounds"),
    [("kl", True, (0.8, 1.0)), ("kl", False, (0.0, 0.7)), ("labels", True, (0.3, 1.0))],
)
def test_a_students_gradient_is_like_the_classifiers(digits, mlp, denoiser, loss, standardise, bounds):
    """Of a loss at denoised images it has not seen, from 4,800 answers; the gradients of all rows as one.

    A direction in 64 dimensions that knows nothing has a cosine of 0 and, over rows, hardly a spread.
    """
    box = Classifier(mlp, labels=loss == "labels")
    student = StudentTangent(layers(64, 128, 128, 10, bend=nn.ReLU), loss=loss, standardise=standardise)
    with torch.no_grad():
        asked = torch.cat([denoiser(noisy(digits, slice(1200), seed)[0]) for seed in range(4)])
        new, labels = noisy(digits, slice(1200, None), 9)
        new = denoiser(new)
    student.fit(asked, box(asked), steps=400)
    point = new.clone().requires_grad_()
    p = differentiable(mlp, point)
    loss_of_p = squared_loss(p, labels).sum()
    truth, v = torch.autograd.grad(loss_of_p, [point, p])
    assert bounds[0] < cosine(student.at(values(new, box(new))).pull(v.float()), truth) < bounds[1]


class Training:
    """Of a denoiser through a classifier, by a student: 1,000 answers first, then 64 a step."""

    def __init__(
        self, digits, network: nn.Module, model, loss: str, rate: float = 1e-3, check_every: int | None = 25
    ) -> None:
        self.digits, self.network, self.rate = digits, copy.deepcopy(network), rate
        self.box = Classifier(model, labels=loss == "labels")
        student = StudentTangent(layers(64, 128, 128, 10, bend=nn.ReLU), loss=loss)
        with torch.no_grad():
            first = self.network(noisy(digits, slice(1000), 5000)[0])
        student.fit(first, self.box(first))
        policy = zo.tangents.Limits(check_every=check_every)
        self.of_outputs = share_right if loss == "labels" else log_loss
        self.gradient = zo.TangentGradient(
            self.network, self.objective, boxes=[self.box], tangent=student, limits=policy
        )

    def objective(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return self.of_outputs(self.box(network(images)), labels)

    def accuracy(self) -> float:
        """Of the box, on held-out images with noise, the same each time."""
        images, labels = noisy(self.digits, slice(1200, None), 10_000)
        with torch.no_grad():
            return float((self.box(self.network(images)).argmax(dim=1) == labels).float().mean())

    def run(self, steps: int) -> list[float]:
        """The relative error of the student's predictions before each step."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.rate)
        generator, errors = torch.Generator().manual_seed(0), []
        for step in range(steps):
            images, labels = noisy(self.digits, slice(1200), 6000 + step)
            chosen = torch.randperm(1200, generator=generator)[:64]
            optimizer.zero_grad()
            self.gradient.backward((images[chosen], labels[chosen]))
            optimizer.step()
            errors.append(self.gradient.trust_of_step)
        return errors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*what is cut off of long gradients")  # of "kl", as decision 152 has it
@pytest.mark.parametrize("loss", ["kl", "labels"])
def test_a_denoiser_learns_through_a_frozen_classifier(digits, mlp, denoiser, loss):
    """From where least squares left it. 0.05 of 597 images, the same ones, are four standard errors.

    Without checks: a loss at labels is flat but for jumps, and has no slope to check; of "kl" see below.
    """
    training = Training(digits, denoiser, mlp, loss, check_every=None)
    start = training.accuracy()
    errors = training.run(200)
    assert training.accuracy() > start + 0.05
    assert np.mean(errors[-20:]) < 0.6 * np.mean(errors[:20])
    assert not training.gradient.watch.lost


@pytest.mark.slow
def test_checks_find_that_a_student_says_too_little_and_probes_do_no_harm(digits, mlp, denoiser):
    """The loss changes by twice what its gradient says, which Adam does not mind, and checks do.

    Measured, from .759: .866 without checks, .856 with checks and no probes, .878 with those that the checks
    ask for; and .891 by autograd through the classifier itself.
    """
    training = Training(digits, denoiser, mlp, "kl")
    start = training.accuracy()
    with pytest.warns(zo.errors.TangentWarning) as caught:
        training.run(200)
    assert "the rows' own losses to change along the gradient" in str(caught[0].message)
    assert training.gradient.watch.lost and training.accuracy() > start + 0.05


@pytest.mark.slow
def test_where_a_student_misleads_that_is_said(digits, denoiser):
    """A forest is flat between jumps; a smooth student leads away from all that both have seen.

    From .873 to .645 on held-out images. No check can tell, and the student's values are hardly worse than
    at the start, so what is said is where to look.
    """
    images, labels = (tensor[:1200].numpy() for tensor in digits)
    forest = RandomForestClassifier(50, random_state=0).fit(images, labels)
    training = Training(digits, denoiser, forest, "kl", rate=2e-3)
    start = training.accuracy()
    with pytest.warns(zo.errors.TangentWarning) as caught:
        training.run(120)
    flat, values = (str(warning.message) for warning in caught)
    assert "Whether the tangent's slopes are of use only a held-out loss says" in flat
    assert "to predict the boxes' values with a relative error of at most 1" in values
    assert training.accuracy() < start
