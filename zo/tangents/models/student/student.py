"""`StudentTangent`: a network that learns the box's values; its derivative stands for the box's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.checks import check_choice, check_count, check_positive
from blackbox.failures import last_cause
from zo.draws import Key
from zo.errors import ConfigurationError
from zo.tangents.models.model_tangent import RowFunction, pulled_back, pushed_forward
from zo.tangents.models.network import ASKED, ASKED_FOR
from zo.tangents.models.student.student_learning import Learner
from zo.tangents.models.student.student_losses import LOSSES, Shape
from zo.tangents.models.values import Arrays, as_tensors
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import flat_rows
from zo.tangents.tangent import Linearised, Tangent, Unknown


class StudentTangent(Tangent):
    """The derivative of a network that is trained, as the run goes on, on the box's inputs and outputs.

    For boxes whose response depends strongly on the input, as a classifier's.

        layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)
        student = zo.tangents.StudentTangent(nn.Sequential(*layers), loss="kl")
        student.fit(images, classifier)  # asked for the images, once the network is seen to suit it
        gradient = zo.TangentGradient(denoiser, objective, boxes=[classifier], tangent=student)

    Before it has seen anything its derivative is zero, and after a few rows it is poor: begin with `fit`, on
    some 10 % of the rows there will be. Inputs of the box without a derivative do not reach it. Where the box
    is flat or jumps, as a random forest does, the student is smooth all the same and can mislead: see that
    the loss through the box itself, held out, falls.

    The losses follow, with their outputs and the derivative in the box's place. For a classifier take "kl" if
    it answers with probabilities, and "labels" if it answers with one-hot labels:

    - "squared": any outputs. They are standardised.
    - "kl": probabilities along the last axis of one output, rounded ones too. The network ends in scores or
      log-softmax. Differentiated are these, and their softmax at the probabilities p that the box
      gave: J = (diag(p) - p p^T) dscores/dz.
    - "kl-logits": logits along the last axis of one output. Only differences within a row are learned and
      differentiated.
    - "labels": one-hot vectors, or scores whose largest counts as one. They have no derivative, so the
      derivative of the student's probabilities takes its place. The best objective is -y[target]: it slopes
      at right labels too, where (y - target)^2 is flat, and is finite, unlike a logarithm. Along the
      gradient it changes by jumps alone, which shows nothing: switch the check off, by
      `Limits(check_every=None)`.

    Memory: window x (size_in + size_out) numbers of the network's precision, 4 x the network's weights, and
    a graph of the rows of a call. A step: steps_per_step x batch rows forward and backward through the
    network; a call's VJP: its rows forward and backward. The box runs no rows beyond the step's own.

    Args:
        network: from the box's differentiable inputs, `(rows, *shape)`, or where there are several
            `(rows, size_in)`, end to end, to its outputs in the same way. It works on its own device and in
            its own precision, in train mode (dropout, running statistics) while it learns and in eval mode
            otherwise, and is trained in place; `TangentGradient` trains copies.
        loss: one of the four that are explained above.
        window: rows kept to learn from, the oldest going.
        batch: rows of a step of learning, drawn from the window with replacement.
        steps_per_step: steps of learning in each step of training.
        learning_rate: the learning rate of Adam.
        standardise: whether to standardise inputs, and outputs where the loss is "squared", by mean and
            standard deviation of all rows seen so far. Without it most networks learn little.
        seed: all draws depend on (seed, step of learning) alone.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a network or loss that does not
            suit the box's shapes.
    """

    replayed = False  # it stands in front of classifiers, where a replay teaches the recorded noise

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: str = "squared",
        window: int = 20_000,
        batch: int = 256,
        steps_per_step: int = 1,
        learning_rate: float = 3e-3,
        standardise: bool = True,
        seed: int = 0,
    ) -> None:
        check_choice("StudentTangent", "loss", loss, tuple(LOSSES))
        for name, count in (("window", window), ("batch", batch), ("steps_per_step", steps_per_step)):
            check_count("StudentTangent", name, count)
        check_positive("StudentTangent", "learning_rate", learning_rate)
        self.loss = loss
        self.steps_per_step = steps_per_step
        self._longer: int | None = None  # steps of training left in which it learns longer; None: never asked
        self._learner = Learner(network, LOSSES[loss](), window, batch, learning_rate, standardise, Key(seed))

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self._learner.network

    def check_box(self, box: BlackBoxFunction) -> None:
        """Refuse a box whose shapes the network does not have."""
        self._bind(
            [spec.shape for spec in box.inputs if spec.differentiable],
            [spec.shape for spec in box.outputs if spec.learned],
        )
        self._learner.check_network()

    def fit(
        self,
        inputs: Arrays,
        outputs: Arrays | BlackBoxFunction,
        steps: int = 400,
    ) -> None:
        """Learn from answers that are there already, or that a box gives.

        Args:
            inputs: the box's differentiable ones, in its order, `(rows, *shape)`; a tensor if it is one. With
                the box in the place of outputs, all of its inputs, with any leading axes.
            outputs: the box's answers, `(rows, *shape)`; a tensor if it is one. Rows that are not finite are
                left out. Or the box, which is asked for them after the network has been tried on its shapes:
                a mistake there costs no row.
            steps: the number of learning steps.

        Raises:
            ConfigurationError: the arrays do not fit each other, the network or the loss, or no row is
                finite.
            TangentError: the loss became infinite or NaN.
        """
        check_count("StudentTangent.fit", "steps", steps)
        if isinstance(outputs, BlackBoxFunction):
            inputs, outputs = self._asked(outputs, inputs)
        groups = [as_tensors(group) for group in (inputs, outputs)]
        by_group = [[tuple(array.shape) for array in group] for group in groups]
        if (
            not all(groups)
            or len({shape[:1] for shapes in by_group for shape in shapes}) != 1
            or not by_group[0][0]
        ):
            raise ConfigurationError(
                f"StudentTangent.fit: expected inputs and outputs with equally many rows first, got "
                f"{by_group}. Give what went into the box and what came out."
            )
        self._bind(*([shape[1:] for shape in shapes] for shapes in by_group))
        self._learner.check_network()
        x, y = (torch.cat([array.flatten(1) for array in map(_with_size, group)], dim=1) for group in groups)
        self._learner.take(x, y)
        if not self._learner.window.seen:
            raise ConfigurationError(
                f"StudentTangent.fit: expected rows with finite numbers, got none among {len(x)}. See why "
                f"the box fails.{last_cause()}"
            )
        self._learner.learn(steps)

    def outputs(self, inputs: Tensor) -> Tensor:
        """The box's outputs as the student has them, with a graph: for rows that the box is not asked for.

        Args:
            inputs: `(rows, *shape)` of its differentiable input, or end to end where there are several.

        Returns:
            `(rows, *shape)` of its output, `(rows, 1)` where that is a number, or end to end.

        Raises:
            ConfigurationError: it has not seen anything yet.
        """
        if not self._learner.window.seen:
            raise ConfigurationError(
                f"{self!r}: expected outputs to be asked for after it has learned, got none so far. "
                "Call fit first."
            )
        return self._learner.values(_with_size(inputs).flatten(1)).unflatten(1, self._learner.shapes[1])

    def at(self, rows: CallPairs) -> Linearised:
        """The student at these rows; nothing is known before it has seen anything."""
        return _StudentAt(rows, self._learner) if self._knows(rows) else Unknown(rows)

    def see(self, rows: CallPairs) -> None:
        """Keep what was asked, and the answers."""
        self._knows(rows)
        self._learner.take(rows.z[rows.alive], rows.y[rows.alive])

    def learn(self, steps: int | None = None) -> None:
        """Learn from the window: so many steps, or those of a step of training."""
        if steps is not None:
            self._learner.learn(steps)
            return
        if self._learner.window.seen:
            self._learner.learn(self.steps_per_step * (ASKED if self._longer else 1))
        self._longer = self._longer and self._longer - 1

    def improve(self) -> str | None:
        """Learn four times as long for some steps, once."""
        if self._longer is not None:
            return None
        self._longer = ASKED_FOR
        return f"{self!r} takes four times as many steps of learning for {ASKED_FOR} steps"

    def keep_within(self, most_bytes: int) -> None:
        """Have a smaller window, or a larger one, unless rows are in it."""
        if not self._learner.window.seen:
            self._learner.window.most_bytes = most_bytes

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, window, moments and counts."""
        return self._learner.state_dict() | {"longer": self._longer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._learner.load_state_dict(state)
        self._longer = state["longer"]

    def _bind(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> None:
        """Take on the box's shapes, and refuse another box's."""
        LOSSES[self.loss]().check(outputs)
        shapes = _network_shape(inputs), _network_shape(outputs)
        if self._learner.window.seen and shapes != self._learner.shapes:
            raise ConfigurationError(
                f"{self!r}: expected rows of shapes {self._learner.shapes}, in and out, as it has learned "
                f"from, got {shapes}. A student stands for one box: fit it to its differentiable arrays."
            )
        self._learner.shapes = shapes

    def _asked(
        self, box: BlackBoxFunction, inputs: Tensor | Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs that a student sees, and the box's learned answers to all inputs, as rows."""
        self.check_box(box)
        arrays = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        with torch.no_grad():
            answers = box(*arrays)
        outputs = [answers] if isinstance(answers, Tensor) else list(answers)
        pairs = zip(box.inputs, arrays, strict=True), zip(box.outputs, outputs, strict=True)
        seen, learned = ([flat_rows(spec, t) for spec, t in both if spec.learned] for both in pairs)
        return seen, learned

    def _knows(self, rows: CallPairs) -> bool:
        """Say whether it has seen anything; refuse a box that it does not suit."""
        self._bind(*([spec.shape for spec in specs] for specs in (rows.inputs, rows.outputs)))
        return self._learner.window.seen > 0

    def __repr__(self) -> str:
        """The network's class, and the loss."""
        return f"StudentTangent({type(self.network).__name__}, loss={self.loss!r})"


class _StudentAt(Linearised):
    """A student at the rows of a call; of labels its values are probabilities."""

    def __init__(self, rows: CallPairs, learner: Learner) -> None:
        super().__init__(rows)
        self._learner = learner

    @property
    def values(self) -> Tensor:
        """The student's outputs."""
        with torch.no_grad():
            return self._learner.values(self.rows.z)

    def push(self, d: Tensor) -> Tensor:
        """The student's J d."""
        return pushed_forward(self._function, self.rows.z, d)

    def pull(self, v: Tensor) -> Tensor:
        """The student's J^T v."""
        return pulled_back(self._function, self.rows.z, v)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """Return the change of the student's outputs."""
        with torch.no_grad():
            base_outputs = self._function(self.rows.z)
        return self._function(z) - base_outputs

    @property
    def _function(self) -> RowFunction:
        """The function of z whose derivative stands for the box's."""
        rows = self.rows
        has_values = len(rows.y) == len(rows.z)
        return partial(self._learner.around, rows.y) if has_values else self._learner.values


def _network_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape of one array, or the size of several end to end; a number a row is a vector of one."""
    return (shapes[0] or (1,)) if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def _with_size(array: Tensor) -> Tensor:
    return array if array.ndim > 1 else array[:, None]
