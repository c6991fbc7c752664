"""The method `student`: a network learns the box's values, and autograd goes through it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from tasks.methods.autograd import Stand
from tasks.methods.through_boxes import answers_of, by_autograd
from tasks.problem.trained import Trained
from tasks.training.setup import Setup

ROUNDED = 1e-2  # by which probabilities that are rounded may miss a sum of one


def student(setup: Setup) -> Trained:
    """Autograd around a network that learns the box's values, from training's rows and earlier answers."""
    stands: dict[BlackBoxFunction, zo.box_gradient.DifferentiableBox] = {}

    def stand(box: BlackBoxFunction) -> Stand:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(setup.seed)
            network = student_network(box).to(setup.config.device)
        tangent = zo.tangents.StudentTangent(network, loss=losses.get(box, "squared"))
        stands[box] = zo.differentiable(box, tangent=tangent, seed=setup.seed)
        return stands[box]

    answers = answers_of(setup)
    losses = {setup.problem.boxes[name]: student_loss(outputs) for name, (_, outputs) in answers.items()}
    gradient = by_autograd(setup, stand)

    def learn() -> None:
        for name, (inputs, outputs) in answers.items():
            box = setup.problem.boxes[name]
            arrays = [array for spec, array in zip(box.inputs, inputs, strict=True) if spec.differentiable]
            tangent = stands[box].tangent  # the copy that learns
            assert isinstance(tangent, zo.tangents.StudentTangent)
            tangent.fit(arrays, outputs, steps=setup.config.prefit)

    return setup.descend(gradient, begin=learn if answers else None)


def student_loss(outputs: Tensor | Sequence[Tensor]) -> str:
    """Choose a student's loss: "kl" for outputs that are probabilities, "labels" for one-hot, else "squared".

    Args:
        outputs: A box's answers, `(rows, *shape)` each; rows that are not finite are left out.
    """
    arrays = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if len(arrays) != 1 or arrays[0].ndim < 2 or arrays[0].shape[-1] < 2:
        return "squared"
    answers = arrays[0].flatten(0, -2)
    answers = answers[answers.isfinite().all(dim=1)]
    off = (answers.sum(dim=1) - 1).abs()
    if not len(answers) or bool((answers < 0).any()) or bool((off > ROUNDED).any()):
        return "squared"
    return "labels" if bool(((answers == 0) | (answers == 1)).all()) else "kl"


def student_network(box: BlackBoxFunction, width: int = 128) -> nn.Module:
    """Make a network from a box's differentiable inputs to its outputs, for a few hundred numbers."""
    size_in = sum(math.prod(spec.shape) for spec in box.inputs if spec.differentiable)
    size_out = sum(math.prod(spec.shape) for spec in box.outputs)
    layers = (
        nn.Linear(size_in, width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, size_out),
    )
    shapes = [tuple(spec.shape) for spec in box.outputs]
    if len(shapes) > 1 or sum(spec.differentiable for spec in box.inputs) > 1:
        return nn.Sequential(*layers)
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, shapes[0] or (1,)))
