"""`RatePopulation`: networks of several learning rates share what boxes answer, and windows judge them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_positive
from zo.batches import Batch
from zo.errors import ConfigurationError
from zo.tangents.gradient import TangentGradient

# decision 143:
FACTORS = (1.0, 4.0, 16.0)  # of the optimiser's own rate
FEWEST, COMPARED = 3, 5  # windows on which members are compared, at least and at most
SURE = 2.0  # standard errors by which losses differ
TINY = 1e-300  # a loss that is not above zero counts as this
AWAY = 2.0  # times the leader's losses: where a faster member has these it takes over the leader's weights


@dataclass
class _Member:
    """A network with a learning rate of its own.

    Attributes:
        factor: of its rate, on the optimiser's.
        weights: its parameters and buffers.
        moments: what the optimiser remembers of its steps, by parameter.
        losses: on the last windows, before it trained on them; infinite where one was not finite.
    """

    factor: float
    weights: list[Tensor]
    moments: defaultdict[Tensor, Any]
    losses: list[float] = field(default_factory=list)

    def saw(self, loss: Tensor) -> None:
        """Take in the loss on a new window."""
        value = float(loss)
        self.losses = [*self.losses, value if math.isfinite(value) else math.inf][-COMPARED:]

    @property
    def loss(self) -> float:
        """The mean on the last windows."""
        return fmean(self.losses)

    def above(self, other: _Member, times: float = 1.0) -> bool:
        """Whether the mean is above so many times another's, and the losses clearly by their logarithms."""
        if math.inf in self.losses:
            return math.inf not in other.losses
        if len(self.losses) < FEWEST or math.inf in other.losses:
            return False
        gaps = [_log(own) - _log(its) for own, its in zip(self.losses, other.losses, strict=True)]
        clear = fmean(gaps) > SURE * stdev(gaps) / math.sqrt(len(gaps))
        return self.loss > times * other.loss and clear

    def gives_way_to(self, other: _Member) -> bool:
        """Whether another leads in its place: a faster one where that is sure, a slower one in any doubt."""
        if other.factor > self.factor:
            return self.above(other)
        return len(self.losses) >= FEWEST and other.loss < self.loss


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

    It costs processor time, the replays of each member, and memory for their weights. After a step the
    network has the leader's weights and buffers and the optimiser the leader's moments, so validate and save
    as usual. A scheduler sets the optimiser's rates, of which these are multiples.

    Args:
        gradient: of the network; without replays, as with a `StudentTangent`, one member trains alone.
        optimizer: any whose `step` takes no closure, of weights of that network.
        factors: the members' rates, as multiples of the optimiser's; the one nearest to 1 leads at first.

    Attributes:
        copies: how often a member went on from the leader's weights.

    Raises:
        ConfigurationError: a factor is not above 0 or there twice, there is none, or the optimiser has other
            weights than the network.
    """

    def __init__(
        self,
        gradient: TangentGradient,
        optimizer: torch.optim.Optimizer,
        factors: Sequence[float] = FACTORS,
    ) -> None:
        for factor in factors:
            check_positive("RatePopulation", "factors", factor)
        if not factors or len(set(factors)) < len(factors):
            raise ConfigurationError(
                f"RatePopulation, factors: expected numbers above 0, each once, got {tuple(factors)}. Write "
                "(1, 4, 16), or other multiples of the optimiser's learning rate."
            )
        known = {id(weight) for weight in gradient.network.parameters()}
        if any(id(weight) not in known for group in optimizer.param_groups for weight in group["params"]):
            raise ConfigurationError(
                "RatePopulation, optimizer: expected weights of the gradient's network, got others too. Give "
                "those an optimiser of their own, or put both into one torch.nn.ModuleDict."
            )
        self._gradient, self._optimizer = gradient, optimizer
        self._tensors = list(chain(gradient.network.parameters(), gradient.network.buffers()))
        self._members = [
            _Member(float(factor), self._weights(), _copied(optimizer.state)) for factor in factors
        ]
        self._leader = min(self._members, key=lambda member: abs(math.log(member.factor)))
        self.copies = 0

    @property
    def factor(self) -> float:
        """Of the rate of the member that leads, on the optimiser's."""
        return self._leader.factor

    def step(self, batch: Batch, fresh: Callable[[int], Batch] | None = None) -> Tensor:
        """Ask the boxes at the leader's weights, judge all members by the answers, and let each take steps.

        Where the gradient adds none yet, as in the first steps in closed loop, no member moves. Where no
        replay is trusted the leader alone does.

        Args:
            batch: as for `TangentGradient.backward`.
            fresh: gives batch k of those that no box has answered, for `TangentGradient.imagine`; None for
                none.

        Returns:
            The leader's loss, detached.

        Raises:
            TangentError, ObjectiveError, ParameterError, FailedQueriesError: see `TangentGradient.backward`
                and `replay`; where boxes fail no member has moved.
        """
        gradient, optimizer, leader = self._gradient, self._optimizer, self._leader
        optimizer.zero_grad()
        loss = gradient.backward(batch)
        replays = gradient.replays()
        batches = [fresh(number) for number in range(gradient.imaginations())] if fresh is not None else []
        leader.weights = self._weights()  # as they are now, with what the pass did to buffers
        if all(weight.grad is None for group in optimizer.param_groups for weight in group["params"]):
            return loss
        with self._as(leader):
            optimizer.step()
        if not replays:
            slower = [member for member in self._members if member.factor < leader.factor]
            if slower:
                self._leader = max(slower, key=lambda member: member.factor)
                self._become(self._leader)
            return loss
        leader.saw(loss)
        for member in self._members:
            if member is not leader:
                with self._as(member), gradient.aside():
                    optimizer.zero_grad()
                    member.saw(gradient.replay(last=True))
                    optimizer.step()
        better = [member for member in self._members if leader.gives_way_to(member)]
        if better:
            self._leader = leader = min(better, key=lambda member: member.loss)
        for member in self._members:
            if member.factor > leader.factor and member.above(leader, AWAY):
                member.weights, member.moments = _copied(leader.weights), _copied(leader.moments)
                member.losses = list(leader.losses)
                self.copies += 1
        for member in self._members:
            if member is not leader:
                with self._as(member), gradient.aside():
                    self._train(replays, batches)
        with self._as(leader):
            self._train(replays, batches)
        return loss

    def metrics(self) -> dict[str, float]:
        """For a log: the leader's factor, and how often a member went on from the leader's weights."""
        return {"rate_factor": self.factor, "rate_copies": float(self.copies)}

    def state_dict(self) -> dict[str, Any]:
        """All members, for a checkpoint; gradient and optimiser have states of their own."""
        self._leader.weights = self._weights()
        saved = []
        for member in self._members:
            self._optimizer.state = member.moments
            moments = _copied(self._optimizer.state_dict()["state"])
            saved.append({**vars(member), "weights": _copied(member.weights), "moments": moments})
        self._optimizer.state = self._leader.moments
        return {"members": saved, "leader": self._members.index(self._leader), "copies": self.copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the network has a state of its own.

        Raises:
            ConfigurationError: that was with other factors.
        """
        before, own = [part["factor"] for part in state["members"]], [m.factor for m in self._members]
        if before != own:
            raise ConfigurationError(
                f"RatePopulation: expected the factors of the state, {before}, got {own}. Give it those."
            )
        groups = self._optimizer.state_dict()["param_groups"]
        for member, part in zip(self._members, state["members"], strict=True):
            self._optimizer.load_state_dict({"state": _copied(part["moments"]), "param_groups": groups})
            member.moments, member.weights = self._optimizer.state, _copied(part["weights"])
            member.losses = list(part["losses"])
        self._leader, self.copies = self._members[state["leader"]], state["copies"]
        self._optimizer.state = self._leader.moments

    def _train(self, replays: int, batches: Sequence[Batch]) -> None:
        """What follows a step on the window: replays, and batches that no box has answered."""
        for _ in range(replays):
            self._optimizer.zero_grad()
            self._gradient.replay()
            self._optimizer.step()
        for batch in batches:
            self._optimizer.zero_grad()
            if self._gradient.imagine(batch):
                self._optimizer.step()

    @contextmanager
    def _as(self, member: _Member) -> Iterator[None]:
        """A block in which network and optimiser are a member's; they stay so behind it."""
        self._become(member)
        rates = [group["lr"] for group in self._optimizer.param_groups]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * member.factor
        try:
            yield
        finally:
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            member.weights = self._weights()

    def _weights(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def _become(self, member: _Member) -> None:
        """Give network and optimiser what a member has."""
        for tensor, value in zip(self._tensors, member.weights, strict=True):
            tensor.copy_(value)
        self._optimizer.state = member.moments


def _log(loss: float) -> float:
    return math.log(max(loss, TINY))


def _copied(value: Any) -> Any:
    """Tensors of any nesting, copied; the parameters that are keys of an optimiser's state are themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, defaultdict):
        return defaultdict(dict, {key: _copied(one) for key, one in value.items()})
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
