"""`Population`: networks at several learning rates, and one trained through a model, share boxes' answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.checks import check_count
from blackbox.errors import BudgetError
from blackbox.notices import Notice, Notices
from zo.batches import Batch, count_rows
from zo.errors import (
    FailedQueriesError,
    NonFiniteGradientError,
    ObjectiveError,
    ParameterError,
    TangentError,
    TangentWarning,
)
from zo.same_run import refuse_other_run
from zo.tangents.gradient import TangentGradient
from zo.tangents.playback.by_models import NoValuesError, unanswerable
from zo.tangents.population.members import AWAY, FEWEST, Member, checked_factors, clearly_above
from zo.tangents.population.model_steps import ModelSteps
from zo.tangents.population.optimizers import (
    copied,
    refuse_optimizer,
    refuse_state_in_groups,
    without_weights,
)
from zo.tangents.population.own_state import OwnState
from zo.tangents.population.rivalry import Rivalry
from zo.tangents.population.updates import ROWS, rows_once, updates_of

FACTORS = (1.0, 4.0, 16.0)  # of the optimiser's own rate; decision 143
# decision 194:
OF_SURROGATE = 2.0  # the surrogate's factor
BURST, LONGEST = 50, 1000  # steps of the surrogate in one go, which ends converged: at least and at most
EACH = 10.0  # of them behind a window, where the number of windows is not known
RISES = math.log(2)  # of the losses that models foretell, at which steps are undone; decision 248
WORSE = 2.0  # times the best rate's loss: where a trial's is above that, its window is not replayed
OF_THE_TRAINING = (  # errors that end it, at whichever member's weights they come
    *(TangentError, ObjectiveError, ParameterError, BudgetError),
    *(MemoryError, torch.OutOfMemoryError),
)


class Population:
    """Trains networks at several learning rates and one through a model, for the rows of one training.

        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        population = zo.Population(gradient, optimizer, steps=len(batches), fresh=fresh)
        for batch in batches:
            loss = population.step(batch)  # in the place of backward, optimizer.step and replays
            scheduler.step()

    With few rows there are few steps. Nobody knows beforehand which rate suits them, nor whether a network
    that is trained through a model of the box would end better. Here each has a network of its own, a member.
    The boxes are asked at the weights of the leader.

    **Rates.** The other members use the answers as replays do, y_k + M(x') - M(x_k). So each new window tests
    all members, before any has trained on it, for no row. A faster member leads once its losses on the last
    windows, five at most, are clearly below the leader's. A slower one leads as soon as their mean is lower,
    or where no replay is trusted. A faster one that runs away, with losses clearly above twice the leader's,
    restarts from the leader's weights (population-based training: Jaderberg et al. 2017). A slower one is
    left alone, as a fallback. These are losses of rows that came back. So a member that fails at its own
    weights, in more than a tenth of the rows of its last five windows, gives the lead to a slower one that
    does not, and restarts from it. Then each member takes its own step on the window, and its own replays.

    **The surrogate** takes its steps, 1,000 in a training, on fresh batches that the tangents answer with
    their own values (Dyna: Sutton 1991). Where batches have 1,000 rows in all, and the objective calls each
    box once, with 32 numbers of inputs and outputs each at most, it takes 2.25 for each row, 16,000 at most,
    on 64 rows each. Its steps wait until models foretell the losses of two windows of five to a factor of
    four. Its gradients are scaled to length one. Steps behind which models foretell twice the losses of
    before are undone. It learns to exploit the tangents' errors, so rows of the boxes, asked at its own
    weights, judge it, see `Rivalry`. It gets a trial now and then, after twice as
    many windows where the last trial failed, and all rows while it leads. A failed trial is neither replayed
    nor counted for the rates.

    It costs processor time, the replays of each member, and memory for their weights and moments. After a
    step the network has the leader's weights and buffers and the optimiser the leader's moments, so validate
    and save as usual. A scheduler sets the optimiser's rates; the members' rates are multiples of these.

    Weights that the gradient does not train are the same for all members, as of a second optimiser, or of a
    target network that you update. Members are judged with them as they are. Buffers are each member's own.

    Args:
        gradient: the gradient of the network; without replays, as with a `StudentTangent`, one member trains
            alone.
        optimizer: the optimiser of that network's weights. It keeps its memory by weight, as torch's own do,
            holds no other optimiser, and its `step` takes no closure.
        steps: how many steps there will be; None where that is not known.
        fresh: a function that gives batch k for any k from 0, for the surrogate. It may ask no box. Several
            of one form are joined where a step takes 64 rows. None for rows of the recorded windows.
        factors: the members' rates, as multiples of the optimiser's, in a sequence or an array of one axis;
            the one nearest to 1 leads at first.
        surrogate: whether there is one. There is none where a box has answers that no model of its values
            gives, or its tangent knows of changes alone.

    Attributes:
        steps: the argument `steps`. Set it where a training ends earlier: the surrogate has a last look then.
        without: why there is no surrogate, in words; None where there is one.
        asked_leader: whether boxes were asked in the last step at the weights that the network had before it.
        copies: how often a member went on from another's weights.

    Raises:
        ConfigurationError: factors are no sequence, one is not above 0 or is there twice, or there is none.
            Or the optimiser needs a closure, holds another one, or has other weights than the gradient
            trains. In the first step: it keeps its memory in its groups.
    """

    def __init__(
        self,
        gradient: TangentGradient,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int | None = None,
        fresh: Callable[[int], Batch] | None = None,
        factors: Sequence[float] | np.ndarray | Tensor = FACTORS,
        surrogate: bool = True,
    ) -> None:
        rates = [Member(factor) for factor in checked_factors(factors)]
        if steps is not None:
            check_count("Population", "steps", steps)
        refuse_optimizer(optimizer, gradient)
        self._gradient, self._optimizer, self._own_state = gradient, optimizer, OwnState(gradient, optimizer)
        self.steps, self._planned = steps, steps
        self._model_steps = ModelSteps(gradient, optimizer, fresh)
        self._rates, self._rate = rates, min(rates, key=lambda member: abs(math.log(member.factor)))
        self.without: str | None = None if surrogate else "none was asked for"
        self.without = self.without or _unfit(gradient)
        self._surrogate = Member(OF_SURROGATE)
        self._rivalry = Rivalry()
        self._notices = Notices()
        self.asked_leader = True
        self.copies, self._window, self._owed = 0, 0, 0.0
        self._rows = 0  # of the largest batch, see `rows_once`

    @property
    def updates(self) -> int:
        """The number of steps that the surrogate has taken."""
        return self._model_steps.taken

    @property
    def factor(self) -> float:
        """The leading rate, as a multiple of the optimiser's."""
        return self._rate.factor

    @property
    def leader(self) -> str:
        """The leader's name: "rate 4", a multiple of the optimiser's rate, or "surrogate"."""
        return "surrogate" if self._leads else f"rate {self.factor:g}"

    def step(self, batch: Batch) -> Tensor:
        """Ask the boxes at one member's weights, judge all members by the answers, and let each take steps.

        Where the gradient adds nothing yet, as in the first steps in closed loop, no member moves. Where no
        replay is trusted only the leading rate moves. A member whose objective raises goes back to where it
        was, and counts as lost. Errors of the boxes or the leader are raised, and network and optimiser are
        then the leader's.

        Gradients are set to zero before each of its updates, so a gradient that was added to `.grad` by hand,
        as of a regulariser, is lost: write it into the objective, or take the optimiser's `weight_decay`.

        Args:
            batch: the batch, as for `TangentGradient.backward`.

        Returns:
            The loss at the weights at which the boxes were asked, before any step on the batch, detached.

        Raises:
            TangentError, ObjectiveError, ParameterError, FailedQueriesError: see `TangentGradient.backward`
                and `replay`; where boxes fail no member has taken a step. `TangentError` too where `fresh`
                asks a box.

        Warns:
            TangentWarning: a member's objective raised, or a loss is below 0; once each.
        """
        leader = self._leader
        leader.state, leader.moments = self._own_state.snapshot(), self._optimizer.state
        for member in self._members:
            if member.state is None:
                member.state, member.moments = leader.state, copied(leader.moments)
        try:
            return self._step(leader, batch)
        finally:
            self._window += 1
            self._own_state.become(self._leader)

    def _step(self, leader: Member, batch: Batch) -> Tensor:
        at_surrogate = self.updates > 0 and self._rivalry.is_asked(self._window, self.steps)
        trial = at_surrogate and not self._rivalry.holds
        asked = self._surrogate if at_surrogate else self._rate
        self.asked_leader = asked is leader
        rows, before = count_rows(batch), replace(self._gradient.counts)
        try:
            loss, added = self._ask(asked, batch, trial)
        except Exception as raised:
            failed = isinstance(raised, FailedQueriesError)
            aside = asked is not self._leader and self._goes_on(raised)
            if asked is self._surrogate and (failed or aside):
                self._rivalry = self._rivalry.after(self._window, math.inf, 0.0)
            if failed and not isinstance(raised, NonFiniteGradientError):  # of which rows came back
                asked.was_asked(rows, rows)
                if asked is self._rate:
                    self._choose()
            if failed or not aside:
                raise
            self._say_lost(asked, raised)
            asked, at_surrogate, trial = self._rate, False, False
            self.asked_leader = asked is leader
            loss, added = self._ask(asked, batch, trial)
        replays = self._gradient.replays()
        if not added:
            return loss
        counts = self._gradient.counts
        asked.was_asked(counts.lost - before.lost, rows)
        self._say_below_zero(float(loss))
        if not at_surrogate:
            with self._own_state.at(asked):
                groups = without_weights(self._optimizer)
                self._optimizer.step()
                refuse_state_in_groups(self._optimizer, groups)
        if replays or at_surrogate:
            self._judge(asked, float(loss), trial)
        else:
            self._slow_down()
        if replays:
            self._replay(replays)
        of_boxes, queries = counts.rows - before.rows, counts.queries - before.queries
        self._rows = max(self._rows, rows_once(self._gradient, rows, of_boxes, queries))
        self._imagine()
        return loss

    def _ask(self, member: Member, batch: Batch, trial: bool) -> tuple[Tensor, bool]:
        """The loss that boxes give at a member's weights, and whether there is a gradient."""
        gradient = self._gradient
        self._own_state.become(member)
        foretold = math.nan if member is self._surrogate else self._foretold(batch)
        self._optimizer.zero_grad()
        with gradient.aside() if trial else nullcontext():
            loss = gradient.backward(batch)
        member.state = self._own_state.snapshot()  # with what the pass did to buffers
        if member is not self._surrogate:
            self._rivalry = self._rivalry.saw(float(loss), foretold)
        groups = self._optimizer.param_groups
        return loss, any(weight.grad is not None for group in groups for weight in group["params"])

    def _foretold(self, batch: Batch) -> float:
        """The loss that models foretell before they learn from a batch; infinite where there is none."""
        if self.without is not None:
            return math.inf
        snapshot = self._own_state.snapshot()
        try:
            with torch.no_grad(), self._own_state.rest_kept():
                return float(self._gradient.through(batch).mean())
        except NoValuesError as error:
            self._see_no_values(error)
            return math.inf
        except Exception as raised:
            if not self._goes_on(raised):
                raise
            return math.inf  # by values that a box never gives it may leave its domain
        finally:
            snapshot.restore()

    def _see_no_values(self, error: NoValuesError) -> None:
        """Have no surrogate where a tangent will never have values; one that learns has none yet."""
        if not self._gradient.tangents[error.place].learns:
            self.without = str(error)

    def _judge(self, asked: Member, loss: float, trial: bool) -> None:
        """See what each member makes of the last window, and who leads; all but in a trial take a step on it.

        Args:
            asked: the member at whose weights boxes were asked.
            loss: there.
            trial: whether that was a trial of the surrogate.
        """
        surrogate, other_rates = self._surrogate, [rate for rate in self._rates if rate is not asked]
        losses = {id(asked): loss}
        most = self._rivalry.most if asked is surrogate else math.inf
        step_to = -math.inf if trial else most
        with self._gradient.sharing():
            for rate in other_rates:
                losses[id(rate)] = self._aside(rate, partial(self._take_window, step_to))
            if self.without is None and asked is not surrogate:
                losses[id(surrogate)] = self._aside(surrogate, partial(self._take_window, -math.inf))
        of_rate = losses[id(self._rate)]
        if (trial and not loss <= WORSE * of_rate) or most < of_rate < math.inf:
            self._gradient.forget_last()  # it says little of where the rates are
        if (
            not trial and not self._gradient.outlying
        ):  # the asked one's loss counts such a row, others' do not
            for member in self._members:
                if id(member) in losses:
                    member.saw(losses[id(member)])
            self._choose()
        if asked is surrogate:
            surrogate_loss = math.inf if surrogate.fails_unlike(self._rate) else loss
            self._rivalry = self._rivalry.after(self._window, surrogate_loss, of_rate)
        if self._leads and not surrogate.fails_unlike(self._rate):
            for rate in self._others():
                if len(rate.losses) >= FEWEST and clearly_above(rate.losses, surrogate.losses, AWAY):
                    rate.takes(surrogate, defaultdict(dict))
                    self.copies += 1

    def _choose(self) -> None:
        """Choose which rate leads; those that ran away go on from it."""
        better = [rate for rate in self._rates if rate.takes_over_from(self._rate)]
        if better:
            self._rate = min(better, key=lambda member: member.loss)
        for rate in self._others():
            if rate.goes_back_to(self._rate):
                rate.takes(self._rate, copied(self._rate.moments))
                self.copies += 1

    def _slow_down(self) -> None:
        """Let a slower rate lead, where no replay is trusted."""
        slower = [
            rate for rate in self._rates if rate.factor < self._rate.factor and math.inf not in rate.losses
        ]
        if self._rate.losses and slower:
            self._rate = max(slower, key=lambda member: member.factor)

    def _replay(self, replays: int) -> None:
        """Let each rate take its replays; those of the leading one say how many are trusted."""
        with self._gradient.sharing():
            for rate in self._others():
                if math.isinf(self._aside(rate, partial(self._train, replays))):
                    rate.losses = [*rate.losses[:-1], math.inf]
            with self._own_state.at(self._rate):
                self._train(replays)

    def _imagine(self) -> None:
        """Let the surrogate take its steps, so many at a time that it ends them converged.

        They are owed until models nearly foretell losses: before, no row is asked at its weights, and in a
        correction that may be all of the training.
        """
        if self.without is not None or self._window < FEWEST:
            return
        windows_left = math.inf if self.steps is None else self.steps - self._window
        pace, rows_each = EACH, ROWS
        if self._planned is not None and self.steps is not None and windows_left > 0:
            steps = max(self._planned, self.steps)
            updates, rows_each = updates_of(steps, self._rows)
            pace = updates / max(1, steps - FEWEST)
        self._owed += pace
        if (self._owed < BURST and windows_left != 1) or not self._rivalry.is_candidate:
            return
        count = min(int(self._owed), LONGEST)
        self._owed -= count
        surrogate = self._surrogate
        backup = surrogate.state, copied(surrogate.moments)
        if self._aside(surrogate, partial(self._follow_models, count, rows_each)) > RISES:
            surrogate.state, surrogate.moments = backup

    def _follow_models(self, count: int, rows: int) -> float:
        """Take steps through the models, see `ModelSteps.take`; 0 where a model has no values."""
        try:
            return self._model_steps.take(count, rows)
        except NoValuesError as error:
            self._see_no_values(error)
            return 0.0

    def metrics(self) -> dict[str, float]:
        """Return figures for a log: the leading rate's factor, the surrogate's lead, updates, and copies."""
        return {
            "rate_factor": self.factor,
            "rate_copies": float(self.copies),
            "surrogate_leads": float(self._leads),
            "surrogate_updates": float(self.updates),
        }

    def state_dict(self) -> dict[str, Any]:
        """All members, for a checkpoint; network, gradient and optimiser have states of their own."""
        saved = []
        with self._own_state.then_back():
            for member in self._members:
                part: dict[str, Any] = {"factor": member.factor, "losses": list(member.losses)}
                part["lost"] = list(member.lost)
                if member.state is not None and member is not self._leader:
                    part |= self._own_state.saved(member)
                saved.append(part)
        return {
            "members": saved,
            "rate": self._rates.index(self._rate),
            "rivalry": asdict(self._rivalry),
            "counts": [self._window, self.copies, self.updates],
            "owed": self._owed,
            "rows": self._rows,
            "without": self.without,
            "optimizer": type(self._optimizer).__name__,
            "shapes": self._own_state.shapes(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; load network and optimiser before, which are the leader's.

        Where this raises, weights, optimiser and members are as they were.

        Raises:
            ConfigurationError: the state is of other factors, an optimiser of another class, or a network
                whose tensors have other names or shapes.
        """
        settings = {"factors": [m.factor for m in self._rates], "optimizer": type(self._optimizer).__name__}
        parts = state["members"]
        saved, surrogate = (parts, []) if state["without"] is not None else (parts[:-1], parts[-1:])
        factors = [part["factor"] for part in saved]
        refuse_other_run("Population", settings, {**state, "factors": factors})
        self._own_state.refuse_other(state["shapes"])
        now = self._optimizer.state_dict()
        with self._own_state.then_back():
            rates, surrogates = (
                [self._own_state.loaded(part, now) for part in some] for some in (saved, surrogate)
            )
        rate, owed, counts = rates[state["rate"]], state["owed"], state["counts"]
        self._rows = state["rows"]
        self._rivalry = Rivalry(**state["rivalry"])
        self._rates, self._rate, self._owed, self.without = rates, rate, owed, state["without"]
        self._surrogate = surrogates[0] if surrogates else Member(OF_SURROGATE)
        self._window, self.copies, self._model_steps.taken = counts

    @property
    def _leader(self) -> Member:
        return self._surrogate if self._leads else self._rate

    @property
    def _leads(self) -> bool:
        """True if the surrogate leads and has taken its first steps."""
        return self._rivalry.leads and self.updates > 0

    @property
    def _members(self) -> list[Member]:
        return [*self._rates, self._surrogate] if self.without is None else self._rates

    def _others(self) -> list[Member]:
        """The rates that do not lead the rates."""
        return [rate for rate in self._rates if rate is not self._rate]

    def _aside(self, member: Member, work: Callable[[], float]) -> float:
        """Return the result of a member's work; where its objective raised, restore it and return infinity.

        Far from the boxes' own rows an objective may leave its domain, which ends no training. A spent budget
        or a lack of memory ends it.
        """
        backup = member.state, copied(member.moments)
        try:
            with self._own_state.rest_kept(), self._own_state.at(member), self._gradient.aside():
                return work()
        except Exception as raised:
            if not self._goes_on(raised):
                raise
            member.state, member.moments = backup
            self._say_lost(member, raised)
            return math.inf

    @staticmethod
    def _goes_on(raised: Exception) -> bool:
        """Say whether training goes on after an error at weights of a member that does not lead."""
        return not isinstance(_cause(raised), OF_THE_TRAINING)

    def _say_lost(self, member: Member, raised: Exception) -> None:
        error = _cause(raised)
        name = f"at {member.factor:g} times the learning rate"
        if member is self._surrogate:
            name = "through a model"
        words = f"Population: {name} the objective raised "
        words += f"{type(error).__name__}: {str(error).rstrip('.')}. That member goes back."
        self._notices.say(Notice("raised", words, TangentWarning))

    def _say_below_zero(self, loss: float) -> None:
        if loss < 0:
            words = (
                f"Population: expected losses above 0, whose ratios judge members, got {loss:.3g}: a better "
                "rate or a surrogate may never lead, and replays grow. Add a constant."
            )
            self._notices.say(Notice("below zero", words, TangentWarning))

    def _take_window(self, most: float) -> float:
        """The loss on the last window, infinite where it is not finite; where it is no more, a step."""
        self._optimizer.zero_grad()
        loss = float(self._gradient.replay(last=True))
        if loss <= most:
            self._optimizer.step()
        return loss if math.isfinite(loss) else math.inf

    def _train(self, replays: int) -> float:
        """Replay the window so many times after a step; return 0."""
        for _ in range(replays):
            self._optimizer.zero_grad()
            self._gradient.replay()
            self._optimizer.step()
        return 0.0


def _cause(raised: Exception) -> BaseException:
    """Return the error that the objective raised, where a TangentError names it as its cause."""
    return raised.__cause__ if isinstance(raised, TangentError) and raised.__cause__ else raised


def _unfit(gradient: TangentGradient) -> str | None:
    """Why no network can be trained through a gradient's tangents alone, in words; None where one can."""
    unreplayed = [tangent for tangent in gradient.tangents if not tangent.replayed]
    return f"nothing is replayed with {unreplayed[0]!r}" if unreplayed else unanswerable(gradient.boxes)
