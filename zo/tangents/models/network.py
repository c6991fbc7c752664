"""`NetworkTangent`: a network that learns a box's values by Adam, and a linear map behind it: y = W o N."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from blackbox.checks import check_count, check_positive
from zo.draws import LEARNING, Key
from zo.errors import TangentError
from zo.evaluators.generators import drawing_apart
from zo.tangents.models.at_rows import ModelAt, Together, at_calls, blocks, others_of
from zo.tangents.models.form import Form, rows_of
from zo.tangents.models.lessons import report
from zo.tangents.models.passes import FlatAdam, Passes, Tape, input_cotangents
from zo.tangents.models.prior import Below
from zo.tangents.models.row_window import standard
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.pairs import CallPairs, all_rows
from zo.tangents.tangent import Linearised

# decision 60:
ENOUGH = 0.1  # of the typical change that the box makes: an error for which the usual steps are right
SETTLED = 0.03  # an error at which learning on the first rows ends; decision 32
EARLY = 30  # lessons; decision 32
MOST, LATER = 5, 2  # at most so many times the usual steps in those, and after these; decision 32
ASKED, ASKED_FOR = 4, 25  # so many times the steps in so many lessons, where trust asks for more
LESSON = 2**20  # numbers of inputs that are brought into units at once
CHUNK = 50  # first steps after which the error is looked at


@dataclass(frozen=True)
class Learning:
    """The settings of learning: `replace(MLPTangent.LEARNING, window=500)` changes one of them.

    Attributes:
        batch: rows of a step of learning, drawn from the window with replacement.
        steps_per_step: steps of learning in a step of training, where the error on the window is a tenth of
            the typical change that the box makes. Another error takes fewer or more in proportion, at most
            five times as many in the first 30 steps of training, and later twice.
        window: rows kept to learn from, the oldest going.
        first_steps: steps of learning on the first rows, at most: it ends at an error of .03 of that change.
        learning_rate: the learning rate of Adam.

    Raises:
        ConfigurationError: a value out of its range.
    """

    batch: int
    steps_per_step: int
    window: int = 4000
    first_steps: int = 400
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        """Refuse values out of their range."""
        for name in ("batch", "steps_per_step", "window", "first_steps"):
            check_count("Learning", name, getattr(self, name))
        check_positive("Learning", "learning_rate", self.learning_rate)


class NetworkTangent(ValueTangent):
    """The derivative of y = W o N: a network N, trained on the last rows, and perhaps an `OutputMap` W.

    Inputs, and the box's change of its state, are standardised. A subclass builds N (`build`), and says which
    numbers share a unit (`groups`), and how N learns by default (`LEARNING`).
    """

    LEARNING: ClassVar[Learning]

    def __init__(
        self, *, learning: Learning | None, output_map: bool, seed: int, prior: Below | None = None
    ) -> None:
        self.learning = self.LEARNING if learning is None else learning
        self._key = Key(seed)
        super().__init__(self.learning.window, output_map, prior)

    def _forget(self, window: int) -> None:
        """Know nothing."""
        super()._forget(window)
        self._plan: dict[str, Any] = {}  # what the network was built from
        self._optimizer: FlatAdam[Passes] | None = None  # of a network, once that is built
        self._steps = 0  # of learning
        self._error = math.inf  # of the last lesson, in units of a typical change
        self._longer = 0  # the count of lessons until which it learns longer, since trust asked for that

    def plan(self, form: Form, rows: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        """Return plain values, taken from the first rows, that `build` uses; a resumed run builds from them.

        Args:
            form: the form of the box's rows.
            rows: inputs, others, and what the outputs add to the inputs, standardised, `(rows, size)` each.
        """
        return {}

    @abstractmethod
    def build(self, form: Form, plan: dict[str, Any]) -> Passes:
        """The network: standardised `(rows, size_in)` and `(rows, size of others)` to `(rows, size_out)`."""

    def drawn(self) -> int:
        """Rows of a step of learning."""
        return self.learning.batch

    @property
    def measured(self) -> dict[str, Any]:
        """The facts of the first rows that the network was made from; empty before."""
        return dict(self._plan)

    @property
    def knows(self) -> bool:
        """True if it has learned anything."""
        return self._optimizer is not None

    @torch.no_grad()
    def learn_from_window(self, steps: int | None) -> None:
        """Steps of Adam, as many as the error asks for; the map first, where it is due.

        The first lesson says how far it is, see `zo.tangents.models.lessons`.
        """
        most = self.learning.first_steps if steps is None else steps
        if not self._lessons:
            report(0, most)
        if self._optimizer is None:
            self._make(self._planned())
        if self._lessons:  # behind a network that has learned nothing a map says nothing
            self.map_if_due()
        steps_left = self._steps_due() if steps is None else steps
        while steps_left > 0:
            now = steps_left if self._lessons or steps is not None else min(steps_left, CHUNK)
            losses = self._steps_of(now)
            self._error = float(torch.stack(losses).mean().sqrt())
            steps_left = 0 if self._error < SETTLED else steps_left - now
            if not self._lessons and steps_left:
                report(most - steps_left, most)
        if not math.isfinite(self._error):
            raise TangentError(
                f"{self!r}: expected a finite loss after {self._steps} steps of learning, got {self._error}. "
                "Give a `Learning` with a smaller learning_rate."
            )
        if not self._lessons:
            self.map_if_due()
            report(most, most)
        self._lessons += 1

    def _steps_due(self) -> int:
        """Steps in proportion to the last error; where it stays large for long, more do not help."""
        if not self._lessons:
            return self.learning.first_steps
        most = MOST if self._lessons < EARLY else LATER
        share = self._error / ENOUGH if math.isfinite(self._error) else math.inf
        factor = ASKED if self._lessons < self._longer else 1
        due = math.ceil(self.learning.steps_per_step * self.for_size() * factor * min(most, share))
        return max(
            1, due
        )  # an error of 0, as of a first lesson on a single row, would be the last that it knows

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
        if self._optimizer is None:
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
            self._forget(self._window.rows)
            return
        state = copy.deepcopy(state)  # the optimiser would write to what it is given
        self.load_kept(state)
        self._make(state["plan"])
        self._network.load_state_dict(state["network"])
        self._learner.load_state_dict(state["optimizer"])
        self._steps, self._longer, self._error = state["learning"]

    # The model

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """N alone: what outputs follow of the inputs, and what the network adds."""
        change = self._network(*self._standard(z, others)).to(z.dtype)
        return self._before(z) + self._moments[3].scale().to(z) * change

    def at(self, rows: CallPairs) -> Linearised:
        """The network at these rows, behind a forward pass of theirs."""
        if not self.knows or self.prior is not None or len(blocks(rows.z)) > 1:
            return super().at(rows)
        return self._behind_one_pass([rows], lambda forward: [forward])[0]

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The network at each call, by one forward pass for all, where they are small."""
        if len(blocks(all_rows(calls).z)) > 1:
            together = at_calls(calls, self.values)
            return [_NetworkAt(pairs, self, together, number, None) for number, pairs in enumerate(calls)]
        counts, network = [len(pairs.z) for pairs in calls], self._network
        return self._behind_one_pass(calls, lambda forward: network.apart(forward, counts))

    @torch.no_grad()
    def _behind_one_pass(
        self, calls: Sequence[CallPairs], apart: Callable[[Tape], list[Tape]]
    ) -> list[Linearised]:
        """The network at calls whose forward pass is one, and what it keeps for each."""
        network, rows = self._network, all_rows(calls)
        outputs, forward = network.passed(network.arranged(*self._standard(rows.z, others_of(rows))))
        together = Together(calls, lambda: self._valued(rows.z, network.answers(outputs)))
        return [
            _NetworkAt(pairs, self, together, number, part)
            for number, (pairs, part) in enumerate(zip(calls, apart(forward), strict=True))
        ]

    def forward_pass(self, z: Tensor, others: Tensor) -> Tape:
        """Return the record of a forward pass that `pushed` and `pulled` use."""
        network = self._network
        return network.passed(network.arranged(*self._standard(z, others)))[1]

    def pushed(self, forward: Tape, d: Tensor, others: Tensor) -> Tensor:
        """J d, `(rows, size_in)` to `(rows, size_out)`, behind a forward pass."""
        network, dtype, (inputs, _, _, changes) = self._network, self._dtype(), self._moments
        move = (d / inputs.scale().to(d)).to(dtype)
        arrangement = network.arranged(move, torch.zeros_like(others, dtype=dtype))
        answer = network.answers(network.pushed(forward, arrangement)).to(d)
        return self._map.pushed(self.carried(d) + changes.scale().to(d) * answer)

    def pulled(self, forward: Tape, v: Tensor, size: int) -> Tensor:
        """J^T v, `(rows, size_out)` to `(rows, size)` numbers of inputs, behind a forward pass."""
        network, (inputs, _, _, changes) = self._network, self._moments
        v = self._map.pulled(v)
        arrangement = network.arranged_cotangent((changes.scale().to(v) * v).to(self._dtype()))
        of_inputs, _ = input_cotangents(network, network.back(forward, arrangement), size)
        return self._form.followed_back(self._stays.to(v) * v) + of_inputs.to(v) / inputs.scale().to(v)

    def _valued(self, z: Tensor, answers: Tensor) -> Tensor:
        """W o N, where the network has answered."""
        return self._map(self._before(z) + self._moments[3].scale().to(z) * answers.to(z.dtype))

    @property
    def _learner(self) -> FlatAdam[Passes]:
        assert self._optimizer is not None
        return self._optimizer

    @property
    def _network(self) -> Passes:
        """The network, once it is built."""
        return self._learner.network

    def _standard(self, z: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's standardised inputs."""
        inputs, context, _, _ = self._moments
        o = standard(others, context) if others.shape[1] else others
        return standard(z, inputs).to(self._dtype()), o.to(self._dtype())

    def _before(self, z: Tensor) -> Tensor:
        """The outputs of N, if the network said nothing."""
        carried = self.carried(z)
        return carried + self._moments[3].mean().to(carried)

    def _make(self, plan: dict[str, Any]) -> None:
        """Build the network, on the device of the rows, and its optimiser."""
        self._plan = plan
        with drawing_apart():  # the weights are drawn on the CPU
            torch.default_generator.manual_seed(self._key.generator(LEARNING).initial_seed())
            network = self.build(self._form, plan).to(self._window.spread(1)[0].device)
        network.requires_grad_(False)  # but in `_step_on_a_graph`
        self._optimizer = FlatAdam(network, self.learning.learning_rate)

    def _planned(self) -> dict[str, Any]:
        z, others, y = self._window.spread(rows_of(256, self._form))
        inputs, context, _, changes = self._moments
        o = standard(others, context) if others.shape[1] else others
        return self.plan(self._form, (standard(z, inputs), o, standard(y - self.carried(z), changes)))

    def _dtype(self) -> torch.dtype:
        return next(self._network.parameters()).dtype

    # Learning

    @property
    def whole_rows(self) -> bool:
        """True if a step of learning sees whole rows; if not, `missed` gives the error."""
        return True

    def missed(self, generator: torch.Generator) -> Tensor:
        """Return N's error in units of the box's change, with a graph, where rows are not seen whole."""
        raise NotImplementedError

    def _steps_of(self, count: int) -> list[Tensor]:
        """Take steps of learning; return the mean square error of each."""
        self._learner.begin()
        if not self.whole_rows:
            return [self._step_on_a_graph() for _ in range(count)]
        losses, most = [], max(1, LESSON // (self.drawn() * self._moments[0].mean().numel()))
        while count > 0:
            losses += self._steps_at_once(min(count, most))
            count -= most
        return losses

    def _steps_at_once(self, count: int) -> list[Tensor]:
        """Steps whose rows are drawn, and brought into the network's units, all together."""
        network, optimizer, dtype = self._network, self._learner, self._dtype()
        generators = [self._key.at(self._steps + step).generator(LEARNING) for step in range(count)]
        places = torch.cat([self._window.places(self.drawn(), generator) for generator in generators])
        z, others, y = (column[places.to(column.device)] for column in self._window.columns)
        unit = self._moments[3].scale().to(y)
        target = (y - self._map(self._before(z))) / unit
        x, o = self._standard(z, others)
        losses = []
        for inputs, context, goal in zip(*(rows.split(self.drawn()) for rows in (x, o, target)), strict=True):
            outputs, forward = network.passed(network.arranged(inputs, context))
            error = network.answers(outputs).to(goal)
            if self._map.fitted is not None:
                error = self._map.pushed(error * unit) / unit
            error = error - goal
            losses.append(error.square().mean())
            cotangent = error * (2 / error.numel())
            if self._map.fitted is not None:
                cotangent = self._map.pulled(cotangent / unit) * unit
            network.back(forward, network.arranged_cotangent(cotangent.to(dtype)), optimizer.slopes)
            optimizer.step()
        self._steps += count
        return losses

    def _step_on_a_graph(self) -> Tensor:
        by_name = dict(self._network.named_parameters())
        self._network.requires_grad_(True)
        with torch.enable_grad():
            loss = self.missed(self._key.at(self._steps).generator(LEARNING)).square().mean()
            slopes = torch.autograd.grad(loss, list(by_name.values()))
        self._network.requires_grad_(False)
        for name, slope in zip(by_name, slopes, strict=True):
            self._learner.slopes[name].copy_(slope)
        self._learner.step()
        self._steps += 1
        return loss.detach()


class _NetworkAt(ModelAt):
    """A network at the rows of a call, behind its forward pass."""

    def __init__(
        self, rows: CallPairs, tangent: NetworkTangent, together: Together, number: int, forward: Tape | None
    ) -> None:
        super().__init__(rows, tangent.values, together, number)
        self._tangent, self._forward = tangent, forward

    def values_before_pull(self) -> Tensor:
        """The outputs, by the forward pass that a pull has."""
        return self.values

    def push(self, d: Tensor) -> Tensor:
        """The network's J d."""
        pushed = self._tangent.pushed
        parts = [pushed(forward, d[some], self.others[some]) for some, forward in self._blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def pull(self, v: Tensor) -> Tensor:
        """The network's J^T v."""
        size = self.rows.z.shape[1]
        parts = [self._tangent.pulled(forward, v[some], size) for some, forward in self._blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _blocks(self) -> Iterator[tuple[slice, Tape]]:
        """Some rows, and what a forward pass kept at these: large ones are passed again each time."""
        for some in blocks(self.rows.z):
            forward = self._forward
            if forward is None:
                forward = self._tangent.forward_pass(self.rows.z[some], self.others[some])
            yield some, forward
