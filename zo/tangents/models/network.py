"""`NetworkTangent`: a network that learns a box's values by Adam, and a linear map behind it: y = W o N."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.checks import check_count, check_positive
from zo.draws import Key
from zo.errors import TangentError
from zo.tangents.lessons import tell
from zo.tangents.models.rows import standard
from zo.tangents.models.values import Form, ValueTangent, rows_of

LEARNING = 303  # first word of the key's path for these draws
ENOUGH = 0.1  # of the typical change that the box makes: an error for which the usual steps are right
SETTLED = 0.03  # an error at which learning on the first rows ends
LONGER, EARLY, LATER = 5, 30, 2  # at most so many times the usual steps, in so many lessons; and after these
ASKED, ASKED_FOR = 4, 25  # so many times the steps in so many lessons, where trust asks for more
CHUNK = 50  # first steps after which the error is looked at


class NetworkTangent(ValueTangent):
    """J(z) is that of y = W o N: a network N, trained on the last rows, and perhaps an `OutputMap` W.

    Inputs, and what the box makes of its state, are standardised. A subclass says what N is (`build`), and
    which numbers share a unit (`groups`).
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
            "batch": batch,
            "steps_per_step": steps_per_step,
            "first_steps": first_steps,
        }
        for name, count in counts.items():
            check_count(type(self).__name__, name, count)
        check_positive(type(self).__name__, "learning_rate", learning_rate)
        self.batch, self.steps_per_step, self.first_steps = batch, steps_per_step, first_steps
        self.learning_rate = learning_rate
        self._key = Key(seed)
        super().__init__(window, output_map)

    def _begin_anew(self, window: int) -> None:
        """Know nothing."""
        super()._begin_anew(window)
        self._network: nn.Module | None = None
        self._plan: dict[str, Any] = {}  # what the network was built from
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0  # of learning
        self._error = math.inf  # of the last lesson, in units of a typical change
        self._longer = 0  # the count of lessons until which it learns longer, since trust asked for that

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

    def drawn(self) -> int:
        """Rows of a step of learning."""
        return self.batch

    @property
    def measured(self) -> dict[str, Any]:
        """What the first rows showed, of which the network was made; empty before."""
        return dict(self._plan)

    @property
    def knows(self) -> bool:
        """Whether it has learned anything."""
        return self._network is not None

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Take them into mean and spread."""
        self._moments = self._moments or self.moments(form)
        for moments, values in zip(self._moments, (z, others, y, y - self.carried(z)), strict=True):
            moments.add(values)

    def learn(self, steps: int | None = None) -> None:
        """Steps of Adam, as many as the error asks for; the map first, where it is due.

        The first lesson says how far it is, see `zo.tangents.lessons`.
        """
        most = self.first_steps if steps is None else steps
        if not self._lessons:
            tell(0, most)
        if self._network is None:
            self._make(self._planned())
        if self._lessons:  # behind a network that has learned nothing a map says nothing
            self.map_if_due()
        assert self._network is not None
        left = self._steps_due() if steps is None else steps
        while left > 0:
            now = left if self._lessons or steps is not None else min(left, CHUNK)
            self._network.requires_grad_(True)
            losses = [self._step() for _ in range(now)]
            self._network.requires_grad_(False)
            self._error = float(torch.stack(losses).mean().sqrt())
            left = 0 if self._error < SETTLED else left - now
            if not self._lessons and left:
                tell(most - left, most)
        if not math.isfinite(self._error):
            raise TangentError(
                f"{self!r}: expected a finite loss after {self._steps} steps of learning, got {self._error}. "
                "Take a smaller learning_rate."
            )
        if not self._lessons:
            self.map_if_due()
            tell(most, most)
        self._lessons += 1

    def _steps_due(self) -> int:
        """In proportion to the last error; where it stays large after some lessons, more does not help."""
        if not self._lessons:
            return self.first_steps
        most = LONGER if self._lessons < EARLY else LATER
        share = self._error / ENOUGH if math.isfinite(self._error) else math.inf
        asked = ASKED if self._lessons < self._longer else 1
        return math.ceil(self.steps_per_step * self.for_size() * asked * min(most, share))

    def for_size(self) -> float:
        """Times as many steps of learning as `steps_per_step` says, where a step sees a part of a row."""
        return 1.0

    def improve(self) -> str | None:
        """Learn four times as long for some steps, once."""
        if self._longer:
            return None
        self._longer = self._lessons + ASKED_FOR
        return f"{self!r} takes four times as many steps of learning for {ASKED_FOR} steps"

    def state_dict(self) -> dict[str, Any]:
        """All that was learned, and the rows that it is learned from."""
        if self._form is None or self._network is None or self._optimizer is None:
            return {"form": None}
        state = self.kept() | {
            "network": {name: tensor.clone() for name, tensor in self._network.state_dict().items()},
            "plan": self._plan,
            "optimizer": self._optimizer.state_dict(),
            "learning": (self._steps, self._longer, self._error),
        }
        return copy.deepcopy(state)  # the optimiser gives references

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._begin_anew(self._window.rows)
            return
        state = copy.deepcopy(state)  # the optimiser would write to what it is given
        self.load_kept(state)
        self._make(state["plan"])
        assert self._network is not None and self._optimizer is not None
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._steps, self._longer, self._error = state["learning"]

    # The model

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """N alone: what outputs follow of the inputs, and what the network adds."""
        assert self._network is not None and self._form is not None
        inputs, fixed, _, added = self._moments
        x = standard(z, inputs)
        o = standard(others, fixed) if others.shape[1] else others
        change = self._network(x.to(self._dtype()), o.to(self._dtype())).to(z.dtype)
        return self.carried(z) + added.mean().to(z) + added.scale().to(z) * change

    def _make(self, plan: dict[str, Any]) -> None:
        """Build the network, on the device of the rows, and its optimiser."""
        assert self._form is not None
        self._plan = plan
        with torch.random.fork_rng(devices=()):  # the weights are drawn on the CPU
            torch.default_generator.manual_seed(self._key.generator(LEARNING).initial_seed())
            self._network = self.build(self._form, plan).to(self._window.spread(1)[0].device)
        self._network.requires_grad_(False)  # but in `learn`: elsewhere no derivative by weights is asked
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=self.learning_rate, fused=True)

    def _planned(self) -> dict[str, Any]:
        assert self._form is not None
        z, others, y = self._window.spread(rows_of(256, self._form))
        inputs, fixed, _, added = self._moments
        o = standard(others, fixed) if others.shape[1] else others
        return self.plan(self._form, (standard(z, inputs), o, standard(y - self.carried(z), added)))

    def _dtype(self) -> torch.dtype:
        assert self._network is not None
        return next(self._network.parameters()).dtype

    def missed(self, generator: torch.Generator) -> Tensor:
        """What W o N misses of rows that are drawn, in units of the box's change, with a graph."""
        z, others, y = self._window.draw(self.drawn(), generator)
        return (self.values(z, others) - y) / self._moments[3].scale().to(y)

    def _step(self) -> Tensor:
        assert self._optimizer is not None
        with torch.enable_grad():
            loss = self.missed(self._key.at(self._steps).generator(LEARNING)).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
        self._optimizer.step()
        self._steps += 1
        return loss.detach()
