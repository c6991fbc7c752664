"""`RatePopulation`: networks of several learning rates share what boxes answer, and windows judge them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.checks import check_positive
from blackbox.errors import BudgetError
from blackbox.notices import Notice, Notices
from zo.batches import Batch
from zo.errors import ConfigurationError, ObjectiveError, ParameterError, TangentError, TangentWarning
from zo.evaluators.state import Snapshot
from zo.same_run import refuse_other_run
from zo.tangents.gradient import TangentGradient
from zo.tangents.optimizers import copied, refuse_optimizer, refuse_state_in_groups, without_weights
from zo.tangents.own_state import OwnState

# decision 143:
FACTORS = (1.0, 4.0, 16.0)  # of the optimiser's own rate
FEWEST, COMPARED = 3, 5  # windows on which members are compared, at least and at most
SURE = 2.0  # standard errors by which losses differ
OF_THE_TRAINING = (  # errors that end it, at whichever member's weights they come
    *(TangentError, ObjectiveError, ParameterError, BudgetError),
    *(MemoryError, torch.OutOfMemoryError),
)
TINY = 1e-300  # a loss that is not above zero counts as this
AWAY = 2.0  # times the leader's losses: where a faster member has these it takes over the leader's weights


@dataclass
class _Member:
    """A network with a learning rate of its own.

    Attributes:
        factor: of its rate, on the optimiser's.
        state: of the network, see `OwnState`; None before the first step.
        moments: what the optimiser remembers of its steps, by parameter.
        losses: on the last windows, before it trained on them; infinite where one was not finite.
    """

    factor: float
    state: Snapshot | None = None
    moments: defaultdict[Tensor, Any] = field(default_factory=lambda: defaultdict(dict))
    losses: list[float] = field(default_factory=list)

    def saw(self, loss: float) -> None:
        """Take in the loss on a new window."""
        self.losses = [*self.losses, loss if math.isfinite(loss) else math.inf][-COMPARED:]

    @property
    def loss(self) -> float:
        """The mean on the last windows."""
        return fmean(self.losses)

    def takes_over_from(self, leader: _Member) -> bool:
        """Whether it leads from now on: a faster one where that is sure, a slower one in any doubt."""
        if self.factor > leader.factor:
            return clearly_above(leader.losses, self.losses)
        return len(leader.losses) >= FEWEST and self.loss < leader.loss

    def goes_back_to(self, leader: _Member) -> bool:
        """Whether it goes on from the leader's weights: a faster one far above it, or one that is lost."""
        lost = len(self.losses) >= FEWEST and all(map(math.isinf, self.losses))
        return (lost or self.factor > leader.factor) and clearly_above(self.losses, leader.losses, AWAY)


def clearly_above(losses: Sequence[float], others: Sequence[float], times: float = 1.0) -> bool:
    """Whether the mean of losses is above so many times that of others, and no chance, by their logarithms.

    Args:
        losses: on the last windows; infinite where one was not finite.
        others: on the same windows.
        times: the factor.
    """
    if math.inf in losses or math.inf in others:
        return math.inf not in others
    if len(losses) < FEWEST:
        return False
    gaps = [_log(loss) - _log(other) for loss, other in zip(losses, others, strict=True)]
    clear = fmean(gaps) > SURE * stdev(gaps) / math.sqrt(len(gaps))
    return clear and fmean(losses) > times * fmean(others)


class RatePopulation:
    """Trains with several learning rates at once, for the rows of one training.

        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        population = zo.RatePopulation(gradient, optimizer)  # 1e-3, 4e-3 and 16e-3
        for batch in loader:
            loss = population.step(batch)  # in the place of backward, optimizer.step and replays
            scheduler.step()

    Where rows are few, steps are, and the rate that suits so few differs between problems by a factor of 64.
    Here each rate has a network of its own, a member. The boxes are asked at the weights of the one that
    leads; the others have what was answered as replays do, y_k + M(x') - M(x_k). So each new window is a test
    of all, before any has trained on it, for no row.

    A faster one leads from where its losses on the last windows, five at most, are clearly below the
    leader's; a slower one as soon as their mean is, or where no replay is trusted. A faster one that runs
    away, with losses clearly above twice the leader's, goes on from the leader's weights (population-based
    training: Jaderberg et al. 2017). A slower one never does: it is what the population goes back to. Then
    each takes its own step on the window, and its own replays.

    It costs processor time, the replays of each member, and memory for their weights and moments. After a
    step the network has the leader's weights and buffers and the optimiser the leader's moments, so validate
    and save as usual. A scheduler sets the optimiser's rates, of which these are multiples.

    Weights that the gradient does not train are the same for all members, which are judged with them as they
    are: those of a second optimiser, or of a target network that you update. Buffers are each member's own.

    Args:
        gradient: of the network; without replays, as with a `StudentTangent`, one member trains alone.
        optimizer: of weights of that network; one that remembers by weight, as those of torch do, around no
            other one, and whose `step` takes no closure.
        factors: the members' rates, as multiples of the optimiser's, in a sequence or an array of one axis;
            the one nearest to 1 leads at first.

    Attributes:
        copies: how often a member went on from the leader's weights.

    Raises:
        ConfigurationError: factors are no sequence, one is not above 0 or there twice, there is none, or the
            optimiser needs a closure, holds another one, or has other weights than those that the gradient
            trains. In the first step: it keeps what it remembers in its groups.
    """

    def __init__(
        self,
        gradient: TangentGradient,
        optimizer: torch.optim.Optimizer,
        factors: Sequence[float] | np.ndarray | Tensor = FACTORS,
    ) -> None:
        checked = _checked(factors)
        refuse_optimizer(optimizer, gradient)
        self._gradient, self._optimizer, self._own = gradient, optimizer, OwnState(gradient)
        self._members = [_Member(factor) for factor in checked]
        self._leader = min(self._members, key=lambda member: abs(math.log(member.factor)))
        self._notices = Notices()
        self.copies = 0

    @property
    def factor(self) -> float:
        """Of the rate of the member that leads, on the optimiser's."""
        return self._leader.factor

    @property
    def leader(self) -> str:
        """Who leads, in words: "rate 4"."""
        return f"rate {self.factor:g}"

    def step(self, batch: Batch) -> Tensor:
        """Ask the boxes at the leader's weights, judge all members by the answers, and let each take steps.

        Where the gradient adds none yet, as in the first steps in closed loop, no member moves. Where no
        replay is trusted the leader alone does. A member whose objective raises goes back to where it was,
        and counts as lost; what the boxes or the leader raise is raised, and network and optimiser are then
        the leader's.

        Gradients are set to zero before each of its updates, so one that was added to `.grad` by hand, as of
        a regulariser, is lost: write it into the objective, or take the optimiser's `weight_decay`.

        Args:
            batch: as for `TangentGradient.backward`.

        Returns:
            The leader's loss, detached.

        Raises:
            TangentError, ObjectiveError, ParameterError, FailedQueriesError: see `TangentGradient.backward`
                and `replay`; where boxes fail no member has moved.

        Warns:
            TangentWarning: a member's objective raised; once.
        """
        self._leader.state, self._leader.moments = self._own.snapshot(), self._optimizer.state
        for member in self._members:
            if member.state is None:
                member.state, member.moments = self._leader.state, copied(self._leader.moments)
        try:
            return self._step(batch)
        except BaseException:
            self._become(self._leader)
            raise

    def _step(self, batch: Batch) -> Tensor:
        gradient, optimizer, leader = self._gradient, self._optimizer, self._leader
        optimizer.zero_grad()
        loss = gradient.backward(batch)
        replays = gradient.replays()
        leader.state = self._own.snapshot()  # with what the pass did to buffers
        if all(weight.grad is None for group in optimizer.param_groups for weight in group["params"]):
            return loss
        with self._as(leader):
            before = without_weights(optimizer)
            optimizer.step()
            refuse_state_in_groups(optimizer, before)
        if not replays:
            slower = [m for m in self._members if m.factor < leader.factor and math.inf not in m.losses]
            if leader.losses and slower:
                self._leader = max(slower, key=lambda member: member.factor)
                self._become(self._leader)
            return loss
        others = self._others()
        losses = [float(loss), *(self._aside(member, self._take_window) for member in others)]
        if not gradient.outlying:  # the leader's loss counts such a row, which the window lacks
            for member, its in zip([leader, *others], losses, strict=True):
                member.saw(its)
        better = [member for member in self._members if member.takes_over_from(leader)]
        if better:
            self._leader = leader = min(better, key=lambda member: member.loss)
        for member in self._others():
            if member.goes_back_to(leader):
                member.state, member.moments = leader.state, copied(leader.moments)
                member.losses = list(leader.losses)
                self.copies += 1
        for member in self._others():
            if math.isinf(self._aside(member, partial(self._train, replays))):
                member.losses = [*member.losses[:-1], math.inf]
        with self._as(leader):
            self._train(replays)
        return loss

    def metrics(self) -> dict[str, float]:
        """For a log: the leader's factor, and how often a member went on from the leader's weights."""
        return {"rate_factor": self.factor, "rate_copies": float(self.copies)}

    def state_dict(self) -> dict[str, Any]:
        """All members, for a checkpoint; network, gradient and optimiser have states of their own."""
        saved = []
        with self._then_back():
            for member in self._members:
                part: dict[str, Any] = {"factor": member.factor, "losses": list(member.losses)}
                if member.state is not None and member is not self._leader:
                    self._become(member)
                    part["network"] = copied(self._own.tensors())
                    part["moments"] = copied(self._optimizer.state_dict()["state"])
                saved.append(part)
        return {
            "members": saved,
            "leader": self._members.index(self._leader),
            "copies": self.copies,
            "optimizer": type(self._optimizer).__name__,
            "shapes": self._own.shapes(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; behind network and optimiser, which are the leader's.

        Where this raises, weights, optimiser and members are as they were.

        Raises:
            ConfigurationError: that was with other factors, an optimiser of another class, or a network
                whose tensors have other names or shapes.
        """
        settings = {"factors": [m.factor for m in self._members], "optimizer": type(self._optimizer).__name__}
        factors = [part["factor"] for part in state["members"]]
        refuse_other_run("RatePopulation", settings, {**state, "factors": factors})
        self._own.refuse_other(state["shapes"])
        now = self._optimizer.state_dict()
        with self._then_back():
            members = [self._loaded(part, now) for part in state["members"]]
        leader, copies = members[state["leader"]], state["copies"]
        self._members, self._leader, self.copies = members, leader, copies

    def _loaded(self, part: dict[str, Any], now: dict[str, Any]) -> _Member:
        """A member as it was saved.

        Args:
            part: of the state.
            now: the optimiser's state; that and the network are the member's own behind this.
        """
        member = _Member(part["factor"], losses=list(part["losses"]))
        if "network" in part:
            self._optimizer.load_state_dict({**now, "state": copied(part["moments"])})
            member.moments = self._optimizer.state
            self._own.put(part["network"])
            member.state = self._own.snapshot()
        return member

    @contextmanager
    def _then_back(self) -> Iterator[None]:
        """A block in which network and optimiser may become any member's; they are as they were behind it."""
        optimizer, before = self._optimizer, self._own.snapshot()
        moments, groups = optimizer.state, optimizer.param_groups
        try:
            yield
        finally:
            before.restore(generators=False)
            optimizer.state, optimizer.param_groups = moments, groups

    def _others(self) -> list[_Member]:
        return [member for member in self._members if member is not self._leader]

    def _aside(self, member: _Member, work: Callable[[], float]) -> float:
        """What a member's work gives; infinite where its objective raised, and it is as it was before.

        Far from where the boxes were asked an objective may leave its domain: that ends no training. A
        budget that is spent, or a lack of memory, does.
        """
        before = member.state, copied(member.moments)
        try:
            with self._own.rest_kept(), self._as(member), self._gradient.aside():
                return work()
        except Exception as raised:
            error = raised.__cause__ if isinstance(raised, TangentError) and raised.__cause__ else raised
            if isinstance(error, OF_THE_TRAINING):
                raise
            member.state, member.moments = before
            words = f"RatePopulation: at {member.factor:g} times the learning rate the objective raised "
            words += f"{type(error).__name__}: {str(error).rstrip('.')}. That member goes back."
            self._notices.say(Notice("raised", words, TangentWarning))
            return math.inf

    def _take_window(self) -> float:
        """A step on the last window; the loss before it."""
        self._optimizer.zero_grad()
        loss = float(self._gradient.replay(last=True))
        self._optimizer.step()
        return loss

    def _train(self, replays: int) -> float:
        """What follows a step on the window: replays."""
        for _ in range(replays):
            self._optimizer.zero_grad()
            self._gradient.replay()
            self._optimizer.step()
        return 0.0

    @contextmanager
    def _as(self, member: _Member) -> Iterator[None]:
        """A block in which network and optimiser are a member's; they stay so behind it."""
        self._become(member)
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * member.factor
            yield
            member.state = self._own.snapshot()
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _become(self, member: _Member) -> None:
        """Give network and optimiser what a member has."""
        assert member.state is not None  # of all, from the first step on
        member.state.restore(generators=False)
        self._optimizer.state = member.moments


def _checked(factors: Any) -> list[float]:
    """The factors as floats.

    Raises:
        ConfigurationError: they are no sequence, one is not above 0 or there twice, or there is none.
    """
    values = factors.tolist() if isinstance(factors, np.ndarray | Tensor) else factors
    listed = isinstance(values, Sequence)
    if listed:
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        for value in values:
            check_positive("RatePopulation", "factors", value)
    if not listed or not values or len(set(values)) < len(values):
        raise ConfigurationError(
            f"RatePopulation, factors: expected a sequence of numbers above 0, each once, got {factors!r}. "
            "Write (1, 4, 16), or other multiples of the optimiser's learning rate."
        )
    return [float(value) for value in values]


def _log(loss: float) -> float:
    return math.log(max(loss, TINY))
