"""`TangentGradient`: autograd through network and black boxes, with learned tangents for the boxes' part."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.box_group import BoxGroup
from blackbox.notices import Notices
from zo.batches import Batch
from zo.errors import NonFiniteGradientError
from zo.execution.ranks import Ranks, apart_notice
from zo.objective import Objective
from zo.parameters import Choice
from zo.tangents.models.row_window import MOST_BYTES as MOST_OF_ROWS
from zo.tangents.playback.by_models import losses_by_models
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.record.units import Units
from zo.tangents.replay.available_memory import SHARE_OF_ROWS, SHARE_OF_WINDOWS, room_for
from zo.tangents.replay.replayed_windows import MOST_BYTES as MOST_OF_WINDOWS
from zo.tangents.step.accumulation import Accumulation
from zo.tangents.step.counts import TangentCounts
from zo.tangents.step.evaluations import Evaluations
from zo.tangents.step.gradient_settings import GradientSettings
from zo.tangents.step.judgement import Judgement
from zo.tangents.step.replays import Replays
from zo.tangents.step.stand_ins import StandIns
from zo.tangents.tangent import Linearised, Tangent
from zo.tangents.trust import Limits, TrustWatch


class TangentGradient:
    """Fills `.grad` of a network around black boxes, using only their function values.

        solver = WakeFlow(...)
        gradient = zo.TangentGradient(network, objective, boxes=[solver])
        for batch in loader:
            optimizer.zero_grad()
            loss = gradient.backward(batch)
            optimizer.step()

    In each step the objective runs with the real boxes. The tangents, models of the boxes, learn from the
    inputs and outputs of each call. Then autograd runs, using a tangent's vector-Jacobian product in place of
    its box's. Values always come from the box; only the derivative comes from a model. The code around the
    boxes must be differentiable.

    This costs batch rows in each call, as in a first-order step, for any number of weights. The objective is
    evaluated once; in the first step and where rows fail twice: with the boxes, and for autograd with their
    recorded answers. Buffers (running statistics) are updated by one of the two.

    The gradient is as biased as the tangent is wrong. Each step measures this by predicting answers that the
    tangent has not learned from yet. Every few steps, one more query along the gradient (batch rows in each
    call) compares loss and responses with the predictions of gradient and tangents. When trust is lost,
    tangents learn longer, then other kinds are tried, for no more rows. A warning announces each, and says
    when nothing is left. A held-out loss decides: see `KeepBest`. The numbers of a box may
    be in any units: each is measured by its usual size (`Units`).

    Processes with the same network can share the rows of each call and get the same result:

        torch.distributed.init_process_group("gloo")  # in train.py; torchrun --nproc-per-node=3 train.py
        solver = zo.execution.SharedRows(WakeFlow(...), torch.distributed.group.WORLD, block=4)

    Args:
        network: the network; put several in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, as for `LossGradient`. It calls the boxes,
            any number of times, with torch tensors.
        boxes: the boxes that the objective calls and that gradients go through. If it calls another box, that
            box runs in both evaluations, and its inputs must not depend on the weights. If a box is wrapped,
            name the outermost wrapper. A `Hosted` stands for its boxes.
        tangent: a tangent that is copied for each box, or a sequence with one for each. None for a model of
            the box's values, of a kind that depends on its specs (`AutoTangent`); see
            docs/concepts/learned_tangents.md.
        parameters: the parameters to train, as for `LossGradient`; all must require a gradient.
        seed: all draws depend only on the seed and the step.
        process_group: None says that the gradient exchanges nothing with other processes. Left out, it does
            not either, with a warning where torch.distributed has several and none of the boxes is a
            `SharedRows`.
        steps: how many steps the training takes; None where that is not known. In closed loop at most a
            quarter of them, or 25 steps for None, wait for the response to a first dither. Where trust is
            lost in the last step, no remedy is begun, since it could not act.
        limits: bounds on replays, on the length of a gradient, on dithers and on checks, see `Limits`; None
            for the defaults.

    Failed rows: rows with a loss that is not finite in the base are taken out of loss and gradient; where
    boxes fail in more than a tenth of all rows so far, a notice says so once. If rows of a check fail, the
    others decide, unless more than a tenth failed, or those with most of the gradient. Then the check is
    inconclusive; three such checks in a row give a warning.

    Attributes:
        tangents: one for each box.
        units: one for each box.
        trust: for each call of the last step, the relative error of the tangent's prediction of outputs that
            it had not learned from: 0 is perfect, 1 is no better than predicting their mean, or, for an
            output with the name and shape of an input (a solver that advances a state), predicting that
            input. None where nothing was predicted.
        trust_of_step: the same error over all calls of the last step together.
        agreement: in the last step, the measured change of the loss along the gradient over the predicted
            one: 1 is right, 0 or less would not descend. None if it was not checked.
        agreement_of_rows: in that check, the cosine, over the rows of the batch, of the measured changes of
            their losses and the predicted ones: 1 is right. None if it was not checked, there are fewer than
            four rows, or the boxes are noisy.
        missed: in that check, the relative error of the tangents' prediction of the boxes' responses: 0 is
            perfect. None if it was not checked, or nothing responded.
        watch: the running mean of the trust, and whether it is lost.
        unchecked: set it where the next steps may take no rows but those of their own, as at a budget's end.
        counts: queries, rows and steps so far, see `TangentCounts`.

    Raises:
        ConfigurationError, ParameterError: a value is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        boxes: Sequence[BlackBoxFunction | BoxGroup],
        tangent: Tangent | Sequence[Tangent] | None = None,
        parameters: Choice | Iterable[Choice] | None = None,
        seed: int = 0,
        process_group: EllipsisType | None = ...,
        steps: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        settings = GradientSettings.checked(
            network,
            objective,
            boxes=boxes,
            tangent=tangent,
            parameters=parameters,
            seed=seed,
            process_group=process_group,
            steps=steps,
            limits=limits,
        )
        self._settings, self.parameters = settings, settings.parameters
        self.counts, self.unchecked = TangentCounts(), False
        self._evaluations = Evaluations(settings)
        self._stand_ins = StandIns(settings.tangents, settings.boxes, limits.outliers)
        self._judgement = Judgement(settings, self._stand_ins)
        notices = self._judgement.notices
        longest = limits.clip if self._stand_ins.learn else None
        self._grads = Accumulation(self.parameters, longest, notices)
        self._replays = Replays(settings, self._stand_ins, notices)
        self._keep_within(_room())
        self._rows = 0  # of the last step

    @property
    def network(self) -> nn.Module:
        """The network that the gradient was made with; another network needs a new gradient."""
        return self._settings.network

    @property
    def objective(self) -> Objective:
        """The objective that the gradient was made with."""
        return self._settings.objective

    @property
    def boxes(self) -> tuple[BlackBoxFunction, ...]:
        """The boxes that the gradient was made with; a host's boxes are listed one by one."""
        return self._settings.boxes

    @property
    def tangents(self) -> tuple[Tangent, ...]:
        """One for each box."""
        return self._stand_ins.tangents

    @property
    def units(self) -> tuple[Units, ...]:
        """One for each box."""
        return self._stand_ins.units

    @property
    def notices(self) -> Notices:
        """The warnings that were given so far, each once."""
        return self._judgement.notices

    @property
    def trust(self) -> list[float | None]:
        """The relative error of the tangent's prediction for each call of the last step; see the class."""
        return self._stand_ins.errors

    @property
    def trust_of_step(self) -> float | None:
        """The same error over all calls of the last step together."""
        return self._stand_ins.error

    @property
    def outlying(self) -> int:
        """Rows of the last batch from which nothing is learned, see `Limits.outliers`."""
        return 0 if self._stand_ins.outlying is None else int(self._stand_ins.outlying.rows.sum())

    @property
    def watch(self) -> TrustWatch:
        """The running mean of the trust, and whether it is lost."""
        return self._judgement.watch

    @property
    def agreement(self) -> float | None:
        """The change of the loss along the last step's gradient over the predicted one; see the class."""
        return self._judgement.check.figures.get("agreement")

    @property
    def agreement_of_rows(self) -> float | None:
        """The cosine of the rows' changes in the last step's check and the predicted ones; see the class."""
        return self._judgement.check.figures.get("agreement_of_rows")

    @property
    def missed(self) -> float | None:
        """The relative error of the tangents' responses in the last step's check; see the class."""
        return self._judgement.check.figures.get("missed")

    def backward(self, batch: Batch) -> Tensor:
        """Add this step's gradient to `.grad`, as autograd would.

        Also under `torch.no_grad()` and `torch.inference_mode()`. It is the gradient of the loss itself: a
        `torch.amp.GradScaler` would divide it by a scale that is not in it, so leave the scaler out.

        The first calls may add nothing: in closed loop, and while an input of a box hardly varies over rows
        compared with the spread that weights can give it, until the response to a dither is known, see
        `Limits.excite`. Then `.grad` is as it was, None after `optimizer.zero_grad()`, and an optimiser takes
        no step. A zero would make the next steps of Adam shorter.

        Where it raises, `.grad` and buffers are unchanged, and no step is counted. Rows that the boxes had
        answered by then are counted (`counts.rows`), and tangents keep what they learned from them. So
        another try of the same batch is paid again, and counts twice in learning. The `trust` of that try is
        better than it should be, since the tangents have seen its rows.

        Args:
            batch: any nesting of tensors with rows first.

        Returns:
            The base loss as a detached number: the mean over the rows that did not fail. Where inputs are
            dithered, the response to the dither is taken out as far as the tangents know it. They do not know
            it in the first steps (`tangent_excitation_known` is 0). Over few rows such a loss may be several
            times the undithered one, so do not stop training, or choose the best weights, by it.

        Raises:
            ObjectiveError: the batch or the losses do not have rows first, or the call is inside of autocast.
            ParameterError: the network is not the one that the gradient was made with, or another gradient is
                at work on its weights.
            TangentError: the objective's second evaluation differs from the first, or it calls no box.
            RanksError: a box is a `SharedRows`, and another process asks it for other rows, as with other
                weights, or died.
            FailedBatchError: all rows of the base failed in the boxes, or, as `NonFiniteGradientError`, the
                gradient is not finite: go on with the next batch.
            FailedQueriesError: all rows of the base failed elsewhere.
        """
        evaluations, judgement, number = self._evaluations, self._judgement, self.counts.steps
        exchanges = Ranks.exchanges
        with evaluations.alone("backward"):
            step = evaluations.step(batch, number)
            dither = judgement.dither(evaluations.key.at(number))
            with evaluations.run(step, dither, self._stand_ins.memory) as evaluation:  # the boxes run, once
                self.counts.rows += evaluation.rows  # whatever comes of the step
                pairs = evaluation.pairs()
                at_calls = self._stand_ins.take_in(pairs, evaluation.calls, len(evaluation.survived))
                evaluation.outlying = self._stand_ins.outlying  # tangents predicted, and have learned
                try:
                    gradient = evaluation.gradient(at_calls, self.trust)  # by autograd: no box runs
                except NonFiniteGradientError:
                    self._stand_ins.unlearn()
                    raise
                gradient = judgement.excite(evaluation, gradient)
                if not self.unchecked:
                    evaluation.check = judgement.along(evaluation, gradient)  # a query more, where it is due
            gradient = judgement.without_unmoved(evaluation, gradient)
            share = judgement.share(evaluation)
            if share is not None:
                self.counts.clipped += self._grads.add_share(gradient.gradients, share, number)
            self._rows = self.counts.add(evaluation)
            self._replays.add(evaluation.usual(gradient.window))
            judgement.saw(evaluation, gradient, self.counts.lost)
            if self._settings.process_group is ...:
                together = "zo.execution.SharedRows(box, group, block=n) around each box"
                judgement.notices.say(apart_notice("TangentGradient", number, exchanges, together))
            return gradient.back.loss

    def replays(self) -> int:
        """The number of replays that may follow the last step; the first call makes windows be kept for them.

        See `replay`. It is 0 before the first step, and then the number that `Limits` gives. Without such a
        number there are no replays in two cases. One is a tangent whose `replayed` is False, such as a
        `StudentTangent`: in front of a classifier a replay teaches the noise that was recorded. The other is
        a last step whose answers the tangents predicted ten times worse than knowing nothing would: the
        tangents have learned nothing at these weights. After a step that added no gradient there are never
        any replays, see `backward` (`tangent_waits`).
        """
        allowed = self._replays.allowed()
        return 0 if self._judgement.waits else allowed

    def replay(self, rows: int | None = None, *, last: bool = False) -> Tensor:
        """Add to `.grad` the gradient on rows of windows that are recorded, at the weights as they are.

            for batch in loader:
                optimizer.zero_grad(); gradient.backward(batch); optimizer.step()
                for _ in range(gradient.replays()):
                    optimizer.zero_grad(); gradient.replay(); optimizer.step()

        No box runs: call k is answered by y_k + M(x') - M(x_k), see `zo.tangents.playback.anchored`. The more
        the weights have changed since a window was recorded, the less its answers are the box's; hence the
        number of replays and the age of windows are bounded. Where boxes are noisy, the noise that was
        recorded stays in each replay of its window: corrections hold in expectation only.

        Args:
            rows: how many rows to draw from all windows that are kept; None for as many as the last step
                had, and at least four.
            last: take the last window that is kept as it is, and draw nothing: the loss of the last batch,
                without outliers (`Limits`), at the weights as they are, for no row.

        Returns:
            The mean loss, detached. Where loss or gradient is not finite, `.grad` is unchanged.

        Raises:
            TangentError: nothing is recorded yet. Or the objective makes other calls than were recorded,
                calls a box that is not in `boxes`, or asks boxes for rows in another order than the batch
                has. Or the batch holds a list with an entry for each row. `.grad` is unchanged.
            ObjectiveError: the batch holds a jagged tensor; no rows can be drawn from it.

        Warns:
            TangentWarning: at the first replay, the loss depends on outputs without a derivative: they stay
                as recorded.
        """
        with self._evaluations.alone("replay"):
            counts = self.counts
            loss, gradients = self._replays.gradient(
                self._evaluations, rows, counts.steps, counts.replays, last
            )
            counts.replays += 1
            if gradients:
                counts.clipped += self._grads.add(gradients, counts.steps)
            return loss

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block of steps or replays at other weights than those of the next step.

        They say nothing of how many replays are trusted, nor of how long gradients are, and the rows that the
        next replays draw are those that these drew.
        """
        with self._replays.windows.aside(), self._grads.aside():
            yield

    def sharing(self) -> AbstractContextManager[None]:
        """A block of replays at the weights of several members: rows that all of them draw are drawn once.

        In it no tangent learns but by `backward`, which forgets these rows.
        """
        return self._replays.sharing()

    def through(self, batch: Batch) -> Tensor:
        """The loss of each row by the tangents' own values, `(rows,)`, with a graph by their derivatives.

        No box runs: each call is answered by M(x). Unlike a replay this is exact nowhere (Dyna, Sutton 1991).

        Args:
            batch: any nesting of tensors with rows first, of any number of rows.

        Raises:
            TangentError: the objective calls a box that is not in `boxes`, or a tangent has no values.
        """

        def at(call: RecordedCall) -> Linearised:
            like = call.inputs[0]
            alive = torch.ones(len(like), dtype=torch.bool, device=like.device)
            pairs = self.units[call.box].as_before([call.pairs(self.boxes[call.box], alive)])[0]
            return self._stand_ins.excited[call.box].at(pairs)

        who = "TangentGradient.through"
        return losses_by_models(who, self.objective, self.network, batch, self.boxes, at)

    def recorded(self, rows: int, number: int) -> Batch:
        """A batch of rows that are drawn from the recorded windows.

        Args:
            rows: how many at most.
            number: the number of the draw; another number gives other rows.
        """
        return self._replays.windows.draw(rows, self._evaluations.key, number).batch

    def forget_last(self) -> None:
        """Leave the last window out of replays, unless it is the only one."""
        self._replays.windows.forget_last()

    def prefit(self, batches: Iterable[Any], steps: int = 400) -> None:
        """Let the tangents learn before the first step, from the boxes' answers on some batches.

        Each batch costs the boxes the rows of a base, which are counted; rows that a `Cached` knows cost
        nothing. If you have answers from elsewhere, pass them to a tangent's own `fit`.

        Args:
            batches: the batches, each as for `backward`.
            steps: learning steps, for tangents that learn in steps.

        Raises:
            ConfigurationError: a tangent does not learn, or there is no batch.
            TangentError, FailedQueriesError, ObjectiveError, ParameterError: as `backward`.
        """
        self._stand_ins.refuse_prefit(steps)
        places: set[int] = set()  # of the boxes that were called
        with self._evaluations.alone("prefit"):
            for batch in batches:
                evaluation = self._evaluations.answers(batch)
                self.counts.rows += evaluation.rows
                evaluation.refuse_none_left(self.counts.steps)
                places |= self._stand_ins.see(evaluation)
            self._stand_ins.learn_before(places, steps)

    @property
    def excitation(self) -> tuple[dict[str, Tensor], ...]:
        """The standard deviation of the next dither, number by number, for each box by the name of the input.

        Inputs that are not dithered are left out: most boxes have none.
        """
        return self._judgement.dithers()

    def next_queries(self) -> int:
        """The perturbed objectives that the next step will cost, without the base evaluation.

        `counts.queries` has those of all steps so far.

        A check is counted as one query. It takes more where it finds fault, to confirm that, or where
        rounding of a box's outputs hides what it asked for. It takes none where noise would hide it, or the
        gradient waits, see `backward`.
        """
        return int(not self.unchecked and self.watch.checks(self.counts.steps))

    def metrics(self) -> dict[str, float]:
        """Plain numbers for a log.

        Returns:
            The counts, by name; of the last step the relative error of the tangents' predictions
            (`tangent_error`, 1 at a first step in which models of values know nothing yet; and of each call,
            from 1 on, `tangent_error_call_1`; in the first some ten steps these are nothing to act on, see
            docs/concepts/tangents_right.md), the agreement of the loss
            with the gradient (`tangent_agreement`), that of the rows' own losses
            (`tangent_agreement_of_rows`) and the error of the responses along it (`tangent_missed`), where
            they are known, the rows asked of the boxes (`tangent_rows`), and 1 where trust is lost, else 0
            (`tangent_distrusted`). Where inputs are dithered, the response to that as a share of how much the
            outputs change (`tangent_excitation`), the share of it that the loss is without
            (`tangent_excitation_known`, from 0 to 1), and 1 where no gradient was added, see `backward`
            (`tangent_waits`).
            Where there are replays, how many may follow (`tangent_replays`), how many windows are kept
            (`tangent_windows`), and the bytes that they take (`tangent_window_bytes`).
        """
        figures: dict[str, float | None] = {**asdict(self.counts), "tangent_rows": self._rows}
        figures |= self._stand_ins.metrics(self.counts.steps) | self._judgement.metrics()
        figures |= self._replays.metrics()
        return {name: float(value) for name, value in figures.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Seed, counts (draws depend on the steps in them), trust, units, what was learned."""
        return {
            "counts": asdict(self.counts),
            "clipping": self._grads.state_dict(),
            "room": self._room,
            "rows_of_step": self._rows,
            **self._evaluations.state_dict(),
            **self._judgement.state_dict(),
            **self._stand_ins.state_dict(),
            **self._replays.state_dict(self.counts.steps),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the same bits.

        Raises:
            ConfigurationError: the state is of a run with another seed, other tangents, or boxes of other
                arrays.
        """
        self._stand_ins.refuse_others(state)
        self._evaluations.refuse_other(state)
        self.counts = TangentCounts(**state["counts"])
        self._rows = state["rows_of_step"]
        self._judgement.load_state_dict(state)
        self._grads.load_state_dict(state["clipping"])
        self._keep_within(tuple(state["room"]))
        self._stand_ins.load_state_dict(state)
        self._replays.load_state_dict(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> TangentGradient:
        """A copy with a copy of the network; a function as objective goes on calling the same boxes."""
        if copy.deepcopy(self.objective, memo) is self.objective:
            memo.update({id(box): box for box in self.boxes})
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __repr__(self) -> str:
        """The network's class and size, boxes, tangents."""
        size = f"{type(self.network).__name__}, {self.parameters.size:,} weights"
        return f"{type(self).__name__}({size}, boxes={list(self.boxes)!r}, tangents={list(self.tangents)!r})"

    def _keep_within(self, room: tuple[int, int]) -> None:
        """Have rows to learn from, and windows, take at most so many bytes, wherever a run goes on."""
        self._room = rows, windows = room
        self._replays.keep_within(windows)
        self._stand_ins.keep_within(rows)


def _room() -> tuple[int, int]:
    """Bytes that rows to learn from, of all tangents together, and windows may take on this machine."""
    return room_for(MOST_OF_ROWS, SHARE_OF_ROWS), room_for(MOST_OF_WINDOWS, SHARE_OF_WINDOWS)
