"""Frozen classifiers of scikit-learn's digits as boxes, a denoiser in front of them to be trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import zo
from benchmarks.tangents.problem import Problem
from blackbox import ArraySpec, BlackBoxFunction
from zo.objective import Objective

SIGMA = 0.25  # of the noise, images in [0, 1]
DRAWS = 103  # first word of the keys' paths for these draws
BOX, TRAIN, VALIDATION = 600, 600, 200  # images; the rest, 397, are for the last line
ROWS = 10  # in a step


class Classifier(BlackBoxFunction):
    """Probabilities `(10,)` of an image `(64,)`, by a fitted scikit-learn pipeline."""

    inputs = (ArraySpec("image", (64,), "float32"),)
    outputs = (ArraySpec("probabilities", (10,), "float32"),)

    def __init__(self, kind: str) -> None:
        super().__init__()
        models = {
            "network": MLPClassifier((128,), max_iter=500, random_state=0),
            "forest": RandomForestClassifier(200, random_state=0),
        }
        images, labels = digits()
        self.kind = kind
        self.pipeline = make_pipeline(StandardScaler(), models[kind])
        self.pipeline.fit(images[:BOX].numpy(), labels[:BOX].numpy())

    def evaluate_rows(self, image):  # noqa: ANN001, ANN201 - NumPy in and out
        """All rows."""
        return self.pipeline.predict_proba(image).astype("float32")

    def twin(self, images: Tensor) -> Tensor:
        """The network again, in torch, with a derivative."""
        scaler, network = (step for _, step in self.pipeline.steps)
        hidden = (images.double() - torch.tensor(scaler.mean_)) / torch.tensor(scaler.scale_)
        for place, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
            linear = torch.tensor(weights).double(), torch.tensor(bias).double()
            hidden = (hidden.relu() if place else hidden) @ linear[0] + linear[1]
        return hidden.softmax(dim=-1).float()


class Denoiser(nn.Module):
    """The image less what a small network takes for noise, in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, image: Tensor) -> Tensor:
        """`(rows, 64)` to the same."""
        return (image - self.layers(image)).clamp(0, 1)


def digits() -> tuple[Tensor, Tensor]:
    """Images `(1797, 64)` in [0, 1] in a fixed random order, and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def cross_entropy(solver: Callable[[Tensor], Tensor]) -> Objective:
    """Of the box's probabilities for denoised images: `(rows,)`."""

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, label = batch
        probabilities = solver(network(image)).clamp(min=1e-4)
        return -probabilities.gather(1, label[:, None]).squeeze(1).log()

    return objective


def classifier(kind: str, methods: tuple[str, ...], steps: int = 1800) -> Problem:
    """The problem of a classifier: the start is trained to restore images, without the box."""
    images, labels = digits()
    box = Classifier(kind)
    train, rest = slice(BOX, BOX + TRAIN), BOX + TRAIN
    clean, answer = images[train], labels[train]

    def noisy(wanted: slice, copies: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        several = images[wanted].repeat(copies, 1)
        return several + SIGMA * torch.randn(several.shape, generator=generator), labels[wanted].repeat(
            copies
        )

    held_out = {
        "validation": noisy(slice(rest, rest + VALIDATION), 4, 1),
        "test": noisy(slice(rest + VALIDATION, None), 4, 2),
    }

    def batch(seed: int, step: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        generator = zo.estimators.Key(seed, step).generator(DRAWS)
        chosen = torch.randint(TRAIN, (rows,), generator=generator)
        noise = torch.randn(rows, 64, generator=generator)
        return clean[chosen] + SIGMA * noise, answer[chosen]

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = Denoiser()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for step in range(1000):
            generator = zo.estimators.Key(seed, step).generator(DRAWS, 1)
            chosen = clean[torch.randint(TRAIN, (64,), generator=generator)]
            optimizer.zero_grad()
            found = network(chosen + SIGMA * torch.randn(chosen.shape, generator=generator))
            (found - chosen).square().mean().backward()
            optimizer.step()
        return network

    @torch.no_grad()
    def error(network: nn.Module, data: str) -> float:
        image, label = held_out[data]
        return (box(network(image)).argmax(dim=1) != label).double().mean().item()

    return Problem(
        box=box,
        exact=box.twin if kind == "network" else None,
        start=start,
        objective=cross_entropy,
        batch=batch,
        error=lambda network: error(network, "test"),
        validate=lambda network: error(network, "validation"),
        unit=f"share of noisy images (sigma {SIGMA:g}) that the classifier takes for another digit",
        steps=steps,
        learning_rate=2e-3,
        hard="The box's response depends strongly on its input, which a network stands before.",
        methods=methods,
    )
