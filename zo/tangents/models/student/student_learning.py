"""The learning of a student: its network, the window of rows that it learns from, and their moments."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from zo.draws import STUDENT, Key
from zo.errors import ConfigurationError, TangentError
from zo.evaluators.generators import drawing_apart
from zo.tangents.models.row_window import Moments, RowWindow
from zo.tangents.models.student.student_losses import Shape, StudentLoss


class Learner:
    """Trains a network on a window of rows (x, y), both flat, in its own precision and on its own device.

    Args:
        network: `(rows, *shape in)` to `(rows, *shape out)`.
        loss: the relation of its scores to the box's outputs.
        window: the number of rows kept.
        batch: rows of a step.
        learning_rate: the learning rate of Adam.
        standardise: whether to standardise the inputs, and the outputs for the loss.
        key: the key on which draws depend.

    Attributes:
        shapes: the shapes of the network's inputs and outputs, to be set before all else.
        steps: how many steps of learning there were so far.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: StudentLoss,
        window: int,
        batch: int,
        learning_rate: float,
        standardise: bool,
        key: Key,
    ) -> None:
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        if not weights:
            raise ConfigurationError(
                f"StudentTangent, network: expected parameters that require a gradient, got none in "
                f"{type(network).__name__}. Set requires_grad=True on what is to learn."
            )
        self.network = network.eval()
        self.loss = loss
        self.batch = batch
        self.standardise = standardise
        self.shapes: tuple[Shape, Shape] = (), ()
        self.steps = 0
        self.window = RowWindow(window)
        self._moments = Moments(), Moments()  # of inputs and outputs
        self._optimizer = torch.optim.Adam(weights, lr=learning_rate)
        self._key = key

    @torch.no_grad()
    def check_network(self) -> None:
        """Try the network on two rows of zeros, since answers of the box may be dear.

        Raises:
            ConfigurationError: it does not take `shapes[0]` to `shapes[1]`.
        """
        rows = self._weight().new_zeros(2, *self.shapes[0])
        try:
            self._outputs_of(rows)
        except (RuntimeError, TypeError) as error:  # how layers refuse what does not fit them
            raise self._other_shape(rows, f"an error ({str(error).splitlines()[0]})") from error

    def take(self, x: Tensor, y: Tensor) -> None:
        """Keep the rows, `(rows, size_in)` and `(rows, size_out)`, that are finite."""
        weight = self._weight()
        x, y = x.detach().to(weight), y.detach().to(weight)  # which may overflow
        finite = x.isfinite().all(dim=1) & y.isfinite().all(dim=1)
        if bool(finite.any()):
            self.window.add(x[finite], y[finite])
            for moments, values in zip(self._moments, (x, y), strict=True):
                moments.add(values[finite])

    def learn(self, steps: int) -> None:
        """Take some steps of Adam.

        Raises:
            TangentError: the loss is no longer finite.
            ConfigurationError: the loss is not for such outputs, or the network's do not have their shape.
        """
        loss = math.nan
        device = self._weight().device
        self.network.train()
        try:
            with torch.enable_grad(), drawing_apart([device] if device.type == "cuda" else ()):
                for _ in range(steps):
                    loss = self._step(device)
        finally:
            self.network.eval()
        if not math.isfinite(float(loss)):
            raise TangentError(
                f"StudentTangent: expected a finite loss after {self.steps} steps of learning, got "
                f"{float(loss)}. Take a smaller learning_rate, and leave standardise=True."
            )

    def values(self, z: Tensor) -> Tensor:
        """The box's outputs as the network has them, `(rows, size_in)` to `(rows, size_out)`."""
        outputs = self.loss.values(self._scores(z.to(self._weight().device)), *self._units())
        return outputs.flatten(1).to(z)

    def around(self, y: Tensor, z: Tensor) -> Tensor:
        """Values whose derivative alone means something; y `(rows, size_out)` is what the box gave."""
        weight = self._weight()
        values = self.loss.around(
            y.to(weight).unflatten(1, self.shapes[1]), self._scores(z.to(weight.device))
        )
        return self.values(z) if values is None else values.flatten(1).to(z)

    def state_dict(self) -> dict[str, Any]:
        """All that changes while it learns."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "window": self.window.state_dict(),
            "moments": [moments.state_dict() for moments in self._moments],
            "shapes": self.shapes,
            "steps": self.steps,
        }
        return copy.deepcopy(state)  # network and optimizer give references

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(
            copy.deepcopy(state["optimizer"])
        )  # it would write to what it is given
        device = self._weight().device
        self.window.load_state_dict(state["window"], device)
        for moments, entry in zip(self._moments, state["moments"], strict=True):
            moments.load_state_dict(entry, device)
        self.shapes, self.steps = state["shapes"], state["steps"]

    def _weight(self) -> Tensor:
        """One of the weights, for device and precision."""
        return self._optimizer.param_groups[0]["params"][0]

    def _step(self, device: torch.device) -> Tensor:
        generator = self._key.at(self.steps).generator(STUDENT)
        x, y = self.window.draw(self.batch, generator)
        if device.type == "cuda":  # for what draws as it learns, such as dropout
            with torch.cuda.device(device):
                torch.cuda.manual_seed(generator.initial_seed())
        torch.default_generator.manual_seed(generator.initial_seed())
        targets = self.loss.targets(y.unflatten(1, self.shapes[1]), *self._units())
        loss = self.loss.loss(self._scores(x), targets)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.steps += 1
        return loss.detach()

    def _scores(self, x: Tensor) -> Tensor:
        """Return the network's scores for flat rows, `(rows, *shape out)`."""
        if self.standardise:  # in float64: what is left of large numbers may be small
            x = (x.double() - self._moments[0].mean()) / self._moments[0].scale()
        return self._outputs_of(x.to(self._weight().dtype).unflatten(1, self.shapes[0]))

    def _outputs_of(self, rows: Tensor) -> Tensor:
        """Return the network's outputs for rows, `(rows, *shape in)`; refuse another shape."""
        scores = self.network(rows)
        if not isinstance(scores, Tensor) or scores.shape != (len(rows), *self.shapes[1]):
            got = f"{tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise self._other_shape(rows, got)
        return scores

    def _other_shape(self, rows: Tensor, got: str) -> ConfigurationError:
        shape = (len(rows), *self.shapes[1])
        return ConfigurationError(
            f"StudentTangent, network: expected it to take {tuple(rows.shape)} to {shape}, got {got}. Give "
            "it the shapes of the box's differentiable input and output (torch.nn.Flatten() before layers "
            "that take vectors); of several arrays, end to end, their sizes."
        )

    def _units(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of the outputs, `(*shape out)`, in the network's precision."""
        weight, moments = self._weight(), self._moments[1]
        mean, scale = (
            statistic.to(weight).unflatten(0, self.shapes[1])
            for statistic in (moments.mean(), moments.scale())
        )
        return (mean, scale) if self.standardise else (torch.zeros_like(mean), torch.ones_like(scale))
