"""`NetworkTangent`: a network that learns a box's values by Adam, and a linear map behind it: y = W o N."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.checks import check_count, check_positive
from zo.draws import Key
from zo.errors import TangentError
from zo.tangents.models.output_map import OutputMap
from zo.tangents.models.rows import Moments, Window, standard
from zo.tangents.models.values import Form, ValueTangent

LEARNING = 303  # first word of the key's path for these draws
ENOUGH = 0.1  # of the typical change that the box makes: a model that is worse off learns on
LONGER = 5  # times the usual steps of learning, while it is
MAP_ROWS = 1500  # of the window that an output map is fitted to


class NetworkTangent(ValueTangent):
    """J(z) is that of y = W o N: a network N, trained on the last rows, and where it has one an `OutputMap` W.

    Inputs and what the box makes of its state are standardised. A subclass says what N is (`build`), and which
    numbers share a unit (`groups`).
    """

    def __init__(
        self,
        *,
        window: int,
        batch: int,
        steps_per_step: int,
        first_steps: int,
        learning_rate: float,
        output_map: bool,
        seed: int,
    ) -> None:
        counts = {
            "window": window,
            "batch": batch,
            "steps_per_step": steps_per_step,
            "first_steps": first_steps,
        }
        for name, count in counts.items():
            check_count(type(self).__name__, name, count)
        check_positive(type(self).__name__, "learning_rate", learning_rate)
        super().__init__()
        self.batch, self.steps_per_step, self.first_steps = batch, steps_per_step, first_steps
        self.learning_rate = learning_rate
        self.output_map = output_map
        self._key = Key(seed)
        self._window = Window(window)
        self._network: nn.Module | None = None
        self._plan: dict[str, Any] = {}  # what the network was built from
        self._optimizer: torch.optim.Optimizer | None = None
        self._moments: tuple[Moments, ...] = ()  # of inputs, others, outputs, and what outputs add to inputs
        self._map: OutputMap | None = None
        self._steps = 0  # of learning
        self._next_map = 0  # the count of lessons before which the map is fitted again
        self._lessons = 0  # calls of `observe` and `fit`
        self._error = math.inf  # of the last lesson, in units of a typical change
        self._factor = 1  # by which trust asks it to learn longer

    def plan(self, form: Form, rows: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        """What `build` is to know of the first rows, in plain values, for a resumed run builds from it again.

        Args:
            form: of the box's rows.
            rows: inputs, others, and what the outputs add to the inputs, standardised, `(rows, size)` each.
        """
        return {}

    @abstractmethod
    def build(self, form: Form, plan: dict[str, Any]) -> nn.Module:
        """The network: standardised `(rows, size_in)` and `(rows, size of others)` to `(rows, size_out)`."""

    def groups(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """Which numbers of arrays of these shapes, end to end, share a unit; None: each has its own."""
        return None

    @property
    def knows(self) -> bool:
        """Whether it has learned anything."""
        return self._network is not None

    def values(self, z: Tensor, others: Tensor) -> Tensor:
        """The box's outputs as the model has them: `(rows, size_in)` to `(rows, size_out)`."""
        _, _, outputs, _ = self._moments
        found = self._within(z, others)
        if self._map is None:
            return found
        mean, scale = (each.to(found) for each in (outputs.mean(), outputs.scale()))
        return mean + scale * self._map((found - mean) / scale)

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Keep the rows in the window, and their mean and spread."""
        self._moments = self._moments or self._new_moments(form)
        self._window.add(z, others, y)
        for moments, values in zip(self._moments, (z, others, y, y - form.followed(z)), strict=True):
            moments.add(values)

    def learn(self, steps: int | None = None) -> None:
        """Steps of Adam, more while the model is poor; the map first, where it is due."""
        own = self.steps_per_step * self._factor if self._lessons else self.first_steps
        if self._network is None:
            self._make(self._planned())
        if self.output_map and self._lessons >= self._next_map:
            self._fit_map()
        for _ in range(LONGER if steps is None and self._lessons else 1):
            losses = [self._step() for _ in range(own if steps is None else steps)]
            self._error = float(torch.stack(losses).mean().sqrt())
            if self._error < ENOUGH:
                break
        if not math.isfinite(self._error):
            raise TangentError(
                f"{self!r}: expected a finite loss after {self._steps} steps of learning, got {self._error}. Take a "
                "smaller learning_rate."
            )
        if self.output_map and not self._lessons:
            self._fit_map()  # behind a network that has learned something
        self._lessons += 1

    def improve(self) -> str | None:
        """Learn four times as long in each step, once."""
        if self._factor > 1:
            return None
        self._factor = 4
        return f"{self!r} takes four times as many steps of learning"

    def rows(self) -> tuple[Form, tuple[Tensor, Tensor, Tensor]] | None:
        """The window."""
        if self._form is None:
            return None
        z, others, y = self._window.spread(self._window.rows)
        return self._form, (z, others, y)

    def state_dict(self) -> dict[str, Any]:
        """All that was learned, and the rows that it is learned from."""
        if self._form is None or self._network is None or self._optimizer is None:
            return {"form": None}
        state = {
            "form": self._form.plain(),
            "network": {name: tensor.clone() for name, tensor in self._network.state_dict().items()},
            "plan": self._plan,
            "optimizer": self._optimizer.state_dict(),
            "window": self._window.state_dict(),
            "moments": [moments.state_dict() for moments in self._moments],
            "map": None if self._map is None else self._map.state_dict(),
            "counts": (self._steps, self._next_map, self._lessons, self._factor, self._error),
        }
        return copy.deepcopy(state)  # the optimiser gives references

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            return
        self._form = Form.of(state["form"])
        state = copy.deepcopy(state)  # the optimiser would write to what it is given
        device = state["window"]["kept"][0].device
        self._moments = self._new_moments(self._form)
        for moments, kept in zip(self._moments, state["moments"], strict=True):
            moments.load_state_dict(kept, device)
        self._window.load_state_dict(state["window"], device)
        self._make(state["plan"])
        assert self._network is not None and self._optimizer is not None
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["map"] is not None:
            self._map = OutputMap()
            self._map.load_state_dict(state["map"], device)
        self._steps, self._next_map, self._lessons, self._factor, self._error = state["counts"]

    # The model

    def _within(self, z: Tensor, others: Tensor) -> Tensor:
        """N alone: what outputs follow of the inputs, and what the network adds."""
        assert self._network is not None and self._form is not None
        inputs, fixed, _, added = self._moments
        x = standard(z, inputs)
        o = standard(others, fixed) if others.shape[1] else others
        change = self._network(x.to(self._dtype()), o.to(self._dtype())).to(z.dtype)
        return self._form.followed(z) + added.mean().to(z) + added.scale().to(z) * change

    def _new_moments(self, form: Form) -> tuple[Moments, ...]:
        inputs, outputs = ([spec.shape for spec in specs] for specs in (form.inputs, form.outputs))
        return tuple(Moments(self.groups(form, shapes)) for shapes in (inputs, form.others, outputs, outputs))

    def _make(self, plan: dict[str, Any]) -> None:
        """Build the network, on the device of the rows, and its optimiser."""
        assert self._form is not None
        self._plan = plan
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self._key.generator(LEARNING).initial_seed())
            self._network = self.build(self._form, plan).to(self._window.spread(1)[0].device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=self.learning_rate)

    def _planned(self) -> dict[str, Any]:
        assert self._form is not None
        z, others, y = self._window.spread(256)
        inputs, fixed, _, added = self._moments
        o = standard(others, fixed) if others.shape[1] else others
        return self.plan(self._form, (standard(z, inputs), o, standard(y - self._form.followed(z), added)))

    def _dtype(self) -> torch.dtype:
        assert self._network is not None
        return next(self._network.parameters()).dtype

    def _fit_map(self) -> None:
        """To the network as it is; then less and less often."""
        z, others, y = self._window.spread(MAP_ROWS)
        outputs = self._moments[2]
        mean, scale = (each.to(y) for each in (outputs.mean(), outputs.scale()))
        with torch.no_grad():
            found = torch.cat(
                [self._within(*part) for part in zip(z.split(256), others.split(256), strict=True)]
            )
        self._map = OutputMap()
        self._map.fit((found - mean) / scale, (y - mean) / scale)
        self._next_map = self._lessons + 1 + self._lessons // 3

    def _step(self) -> Tensor:
        assert self._optimizer is not None
        z, others, y = self._window.draw(self.batch, self._key.at(self._steps).generator(LEARNING))
        with torch.enable_grad():
            missed = (self.values(z, others) - y) / self._moments[3].scale().to(y)
            loss = missed.square().mean()
            self._optimizer.zero_grad()
            loss.backward()
        self._optimizer.step()
        self._steps += 1
        return loss.detach()
