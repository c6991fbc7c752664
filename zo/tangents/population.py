"""`RatePopulation`: networks of several learning rates share what boxes answer, and windows judge them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BudgetError
from blackbox.checks import check_positive
from blackbox.notices import Notice, Notices
from zo.batches import Batch
from zo.errors import ConfigurationError, ObjectiveError, ParameterError, TangentError, TangentWarning
from zo.evaluators.state import Snapshot
from zo.tangents.gradient import TangentGradient

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
        state: of the network: its weights, buffers and attributes; None before the first step.
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

    def ran_away_from(self, leader: _Member) -> bool:
        """Whether it goes on from the leader's weights: a faster one far above it, or one that is lost."""
        lost = len(self.losses) >= FEWEST and all(map(math.isinf, self.losses))
        return self.above(leader, AWAY) and (lost or self.factor > leader.factor)


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

    Args:
        gradient: of the network; without replays, as with a `StudentTangent`, one member trains alone.
        optimizer: of weights of that network; one that remembers by weight, as those of torch do, and whose
            `step` takes no closure.
        factors: the members' rates, as multiples of the optimiser's; the one nearest to 1 leads at first.

    Attributes:
        copies: how often a member went on from the leader's weights.

    Raises:
        ConfigurationError: a factor is not above 0 or there twice, there is none, or the optimiser needs a
            closure or has other weights than those that the gradient trains. In the first step: it keeps what
            it remembers in its groups.
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
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        left = [
            name
            for name, weight in zip(gradient.parameters.names, gradient.parameters.tensors, strict=True)
            if id(weight) not in held
        ]
        if left:
            raise ConfigurationError(
                f"RatePopulation, optimizer: expected all weights that the gradient trains, got one without "
                f"{left[0]!r}: a second optimiser's steps would be lost where another member leads. Give it "
                "all, in groups of their own, or leave it out of the gradient's parameters."
            )
        closure = signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is Parameter.empty:
            raise ConfigurationError(
                f"RatePopulation, optimizer: expected one that steps along `.grad`, got "
                f"{type(optimizer).__name__}, which needs a closure. Take torch.optim.Adam."
            )
        self._gradient, self._optimizer = gradient, optimizer
        self._members = [_Member(float(factor)) for factor in factors]
        self._leader = min(self._members, key=lambda member: abs(math.log(member.factor)))
        self._notices = Notices()
        self.copies = 0

    @property
    def factor(self) -> float:
        """Of the rate of the member that leads, on the optimiser's."""
        return self._leader.factor

    def step(self, batch: Batch, fresh: Callable[[int], Batch] | None = None) -> Tensor:
        """Ask the boxes at the leader's weights, judge all members by the answers, and let each take steps.

        Where the gradient adds none yet, as in the first steps in closed loop, no member moves. Where no
        replay is trusted the leader alone does. A member whose objective raises goes back to where it was,
        and counts as lost; what the boxes or the leader raise is raised, and network and optimiser are then
        the leader's.

        Gradients are set to zero before each of its updates, so one that was added to `.grad` by hand, as of
        a regulariser, is lost: write it into the objective, or take the optimiser's `weight_decay`.

        Args:
            batch: as for `TangentGradient.backward`.
            fresh: gives batch k of those that no box has answered, for `TangentGradient.imagine`; None for
                none.

        Returns:
            The leader's loss, detached.

        Raises:
            TangentError, ObjectiveError, ParameterError, FailedQueriesError: see `TangentGradient.backward`
                and `replay`; where boxes fail no member has moved.

        Warns:
            TangentWarning: a member's objective raised; once.
        """
        self._leader.state, self._leader.moments = Snapshot(self._gradient.network), self._optimizer.state
        for member in self._members:
            if member.state is None:
                member.state, member.moments = self._leader.state, _copied(self._leader.moments)
        try:
            return self._step(batch, fresh)
        except BaseException:
            self._become(self._leader)
            raise

    def _step(self, batch: Batch, fresh: Callable[[int], Batch] | None) -> Tensor:
        gradient, optimizer, leader = self._gradient, self._optimizer, self._leader
        optimizer.zero_grad()
        loss = gradient.backward(batch)
        replays = gradient.replays()
        batches = [fresh(number) for number in range(gradient.imaginations())] if fresh is not None else []
        leader.state = Snapshot(gradient.network)  # with what the pass did to buffers
        if all(weight.grad is None for group in optimizer.param_groups for weight in group["params"]):
            return loss
        with self._as(leader):
            before = _without_weights(optimizer)
            optimizer.step()
            _refuse_state_in_groups(optimizer, before)
        if not replays:
            with self._as(leader):
                self._train(0, batches)
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
        better = [member for member in self._members if leader.gives_way_to(member)]
        if better:
            self._leader = leader = min(better, key=lambda member: member.loss)
        for member in self._others():
            if member.ran_away_from(leader):
                member.state, member.moments = leader.state, _copied(leader.moments)
                member.losses = list(leader.losses)
                self.copies += 1
        for member in self._others():
            if math.isinf(self._aside(member, partial(self._train, replays, batches))):
                member.losses = [*member.losses[:-1], math.inf]
        with self._as(leader):
            self._train(replays, batches)
        return loss

    def metrics(self) -> dict[str, float]:
        """For a log: the leader's factor, and how often a member went on from the leader's weights."""
        return {"rate_factor": self.factor, "rate_copies": float(self.copies)}

    def state_dict(self) -> dict[str, Any]:
        """All members, for a checkpoint; network, gradient and optimiser have states of their own."""
        network, now, moments = (
            self._gradient.network,
            Snapshot(self._gradient.network),
            self._optimizer.state,
        )
        saved = []
        for member in self._members:
            part: dict[str, Any] = {"factor": member.factor, "losses": list(member.losses)}
            if member.state is not None and member is not self._leader:
                self._become(member)
                part["network"] = _copied(_tensors(network))
                part["moments"] = _copied(self._optimizer.state_dict()["state"])
            saved.append(part)
        now.restore(generators=False)
        self._optimizer.state = moments
        return {"members": saved, "leader": self._members.index(self._leader), "copies": self.copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; behind network and optimiser, which are the leader's.

        Raises:
            ConfigurationError: that was with other factors.
        """
        before, own = [part["factor"] for part in state["members"]], [m.factor for m in self._members]
        if before != own:
            raise ConfigurationError(
                f"RatePopulation: expected the factors of the state, {before}, got {own}. Give it those."
            )
        network, optimizer = self._gradient.network, self._optimizer
        now, moments, groups = Snapshot(network), optimizer.state, optimizer.state_dict()["param_groups"]
        for member, part in zip(self._members, state["members"], strict=True):
            member.state, member.losses = None, list(part["losses"])
            if "network" in part:
                optimizer.load_state_dict({"state": _copied(part["moments"]), "param_groups": groups})
                member.moments = optimizer.state
                _put(network, part["network"])
                member.state = Snapshot(network)
        now.restore(generators=False)
        optimizer.state = moments
        self._leader, self.copies = self._members[state["leader"]], state["copies"]

    def _others(self) -> list[_Member]:
        return [member for member in self._members if member is not self._leader]

    def _aside(self, member: _Member, work: Callable[[], float]) -> float:
        """What a member's work gives; infinite where its objective raised, and it is as it was before.

        Far from where the boxes were asked an objective may leave its domain: that ends no training. A
        budget that is spent, or a lack of memory, does.
        """
        before = member.state, _copied(member.moments)
        try:
            with self._as(member), self._gradient.aside():
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

    def _train(self, replays: int, batches: Sequence[Batch]) -> float:
        """What follows a step on the window: replays, and batches that no box has answered."""
        for _ in range(replays):
            self._optimizer.zero_grad()
            self._gradient.replay()
            self._optimizer.step()
        for batch in batches:
            self._optimizer.zero_grad()
            if self._gradient.imagine(batch):
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
            member.state = Snapshot(self._gradient.network)
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _become(self, member: _Member) -> None:
        """Give network and optimiser what a member has."""
        assert member.state is not None  # of all, from the first step on
        member.state.restore(generators=False)
        self._optimizer.state = member.moments


def _without_weights(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimiser's groups hold beside weights, copied."""
    return [
        {key: _copied(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def _refuse_state_in_groups(optimizer: torch.optim.Optimizer, before: Sequence[dict[str, Any]]) -> None:
    """Refuse an optimiser whose step changes its groups: what it counts there would be that of all members.

    Args:
        optimizer: it has taken a step.
        before: what its groups held before.
    """
    for was, now in zip(before, _without_weights(optimizer), strict=True):
        for key, value in now.items():
            if key not in was or not _same(was[key], value):
                raise ConfigurationError(
                    f"RatePopulation, optimizer: expected one that remembers by weight, got "
                    f"{type(optimizer).__name__}, whose step changes {key!r} of its groups. Take one of "
                    "torch.optim, or train at one rate."
                )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def _put(network: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in _tensors(network).items():
        tensor.copy_(values[name])


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
