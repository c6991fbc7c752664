"""`TangentGradient`: autograd through network and black boxes, with learned tangents for the boxes' part."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.checks import check_count, check_fraction, check_number
from blackbox.failures import noted
from blackbox.group import BoxGroup
from blackbox.notices import Notices
from zo.batches import Batch, count_rows, map_tensors
from zo.draws import Key
from zo.errors import ConfigurationError, TangentError
from zo.estimators.estimator import check_mu
from zo.evaluators.evaluator import Evaluator, Step
from zo.evaluators.stacked import Stacked
from zo.evaluators.state import Snapshot
from zo.execution.ranks import Ranks, fingerprint
from zo.failures import CUT, ONE_ROW, lost_notice, many_lost_notice, survivors, zero_notice
from zo.objective import Objective, mean_loss
from zo.parameters import Choice, Parameters, accumulate
from zo.same_run import arrays_of, refuse_other_run, same_chunk
from zo.tangents import checks
from zo.tangents.assumptions.cut import outputs_without_gradient, whole_numbers_notice
from zo.tangents.assumptions.order import refuse_rows_by_place
from zo.tangents.clipping import Clipping
from zo.tangents.evidence.along_gradient import Taken, checked, flat_share
from zo.tangents.evidence.predictions import predict_and_learn, relative_error
from zo.tangents.excitation.dither import Excitation
from zo.tangents.excitation.spread import spread_of_weights
from zo.tangents.models.rows import MOST_BYTES
from zo.tangents.playback.anchored import anchored
from zo.tangents.playback.playback import Live, refuse_unseen_weights, replay
from zo.tangents.playback.way_back import refuse_autocast
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recording import Dither, RecordedCall, alone, record
from zo.tangents.record.units import Units
from zo.tangents.record.window import Window, plain, window_of, without_failed
from zo.tangents.replay.imagination import Imagination, Imagined
from zo.tangents.replay.memory import SHARE_OF_ROWS, SHARE_OF_WINDOWS, room_for
from zo.tangents.replay.windows import MOST_BYTES as MOST_OF_WINDOWS
from zo.tangents.replay.windows import Windows, unreadable
from zo.tangents.tangent import Tangent, bring
from zo.tangents.trust import Check, TrustPolicy, TrustWatch

# decision 87:
NOWHERE = 10.0  # relative error of the last answers' predictions, beyond which nothing is replayed


@dataclass
class TangentCounts:
    """What a `TangentGradient` has spent and seen.

    Attributes:
        steps: calls of `backward`, each with one base evaluation.
        queries: perturbed objectives: probes, and the checks along the gradient.
        rows: rows asked of the boxes, those of base and checks included.
        dropped: rows of probes, in a call, whose pairs were left out because they failed.
        checks: queries along the gradient (see `TrustPolicy.check_every`).
        failed_checks: of those, how many showed nothing, since too many rows failed, or
            the boxes are noisy or constant in pieces.
        lost: rows of the batch that were left out because their loss was not finite.
        replays: calls of `replay`, which run no box.
        imagined: calls of `imagine` that added a gradient; they run no box either.
        clipped: gradients, of both, that were shortened.
    """

    steps: int = 0
    queries: int = 0
    rows: int = 0
    dropped: int = 0
    checks: int = 0
    failed_checks: int = 0
    lost: int = 0
    replays: int = 0
    clipped: int = 0
    imagined: int = 0


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

    This costs batch rows in each call, as in a first-order step, for any number of weights. Tangents that
    learn from changes instead of values need probes: copies of the network with randomly moved weights that
    run beside the base. The changes of a call's input and output between a probe and the base form a pair to
    learn from. Each probe costs batch rows in each call. The objective is evaluated once; beside probes, in
    the first step, with several processes, and where rows fail twice: with all variants, and for autograd
    with the boxes' recorded answers. Buffers (running statistics) are updated by one of the two.

    The gradient is as biased as the tangent is wrong. Each step measures this by predicting answers that the
    tangent has not learned from yet. Every few steps, one more query along the gradient (batch rows in each
    call) compares loss and responses with the predictions of gradient and tangents. When trust is lost,
    tangents learn longer, then other kinds are tried, and finally probes are added, as far as `max_rows`
    allows. A warning announces each; see `TrustPolicy`. A held-out loss decides: see `KeepBest`. The numbers
    of a box may be in any units: each is measured by its usual size (`Units`).

    Processes with the same network can share the evaluations and get the same result:

        torch.distributed.init_process_group("gloo")  # in train.py; torchrun --nproc-per-node=3 train.py
        gradient = zo.TangentGradient(..., process_group=torch.distributed.group.WORLD)

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
        probes: the number of probes while there is trust. None for 0 if all tangents learn only from values
            or not at all, and otherwise for 2.
        mu: standard deviation by which a probe moves each weight. Results hardly depend on it, because only
            the box is linearised. Responses must be distinguishable from the box's rounding and noise.
        max_rows: the average cost that a step may reach when trust is lost, in multiples of the rows of a
            first-order step: 1 for the base, 1 for each probe, and 1 for a check. It must cover base,
            `probes` and checks: 4.04 for three probes and a check in every 25 steps. None for 3.5, or for
            that minimum.
        parameters: the parameters to train, as for `LossGradient`; all must require a gradient.
        evaluator: "stacked" runs base and probes in one call of the objective, so a box gets all their rows
            at once; "loop" runs one after another, for networks and objectives that cannot be stacked. Or
            pass `zo.evaluators.Stacked()` or `Loop()`.
        seed: a probe's draws depend only on (seed, step, its number).
        chunk: how many of base and probes run together; None for all, or 1 with several processes. Results
            are equal to the bit for equal chunks, on any number of processes.
        process_group: processes that all receive the whole batch and have the same random state; "gloo" or,
            for GPUs, "nccl". In each step they exchange what was recorded: variants x rows x (1 + sum over
            calls of (size_in + size_out)) numbers. None for this process alone.
        max_dropped: the fraction of a step's pairs that may fail before the step raises an error. Each is a
            row of a probe in one call; the other pairs teach the tangent all the same.
        trust_policy: when trust is lost.
        replays: how many replays may follow each step, see `replay`; None for as many as are trusted,
            which is none with a `StudentTangent`.
        max_age: the number of windows that are kept to be replayed, the oldest going; None for the last
            third of all so far, and at least twenty. They take at most 1 GiB, and an eighth of the memory.
        clip: the longest gradient that is added to `.grad`, in multiples of the median length of those of the
            last 25 steps: a longer one is shortened to that, for a tangent where it has not been may be wrong
            by orders of magnitude (`counts.clipped`). Where a third of them are far longer, or one of several
            that are added up was shortened, that is said once. None for no bound, as where no tangent learns
            from values, and where several batches make one step of the optimiser.
        excite: the size of the dither of inputs whose derivative values do not show, in multiples of their
            spread: an action that is a function of the observation, or one design for all rows. The box is
            asked a little beside them, for no further row, and the objective gets the answer less the
            tangent's own response to that. None for a size that is found, 0 for no dither. See
            docs/concepts/learned_tangents.md.
        imaginations: how many imagined batches may follow each step, see `imagine`, whatever the tangents'
            values are worth: a plain surrogate. None for as many as what boxes answer allows.
        steps: how many steps the training takes, where that is known: where trust is lost in the last one,
            no remedy is begun, since it could not act. Nothing else depends on it.

    Failed rows: rows with a loss that is not finite in the base are taken out of loss and gradient; where
    boxes fail in more than a tenth of all rows so far, that is said once. A row that fails in a probe drops
    its pair. If rows of a check fail, the others decide, unless more than a tenth failed, or those with
    most of the gradient. The check is then inconclusive; three in a row give a warning.

    Attributes:
        tangents: one for each box.
        units: one for each box.
        trust: for each call of the last step, the relative error of the tangent's prediction of responses
            that it had not learned from: 0 is perfect, 1 is no better than predicting no response. None for a
            call whose inputs do not depend on the weights. Without probes it is the error of predicted
            outputs, and 1 is no better than predicting their mean, or, for an output with the name and shape
            of an input (a solver that advances a state), predicting that input.
        trust_of_step: the same error over all calls of the last step together.
        agreement: in the last step, the measured change of the loss along the gradient over the predicted
            one: 1 is right, 0 or less would not descend. None if it was not checked.
        agreement_of_rows: in that check, the cosine, over the rows of the batch, of the measured changes of
            their losses and the predicted ones: 1 is right. None if it was not checked, there are fewer than
            four rows, or the boxes are noisy.
        missed: in that check, the relative error of the tangents' prediction of the boxes' responses: 0 is
            perfect. None if it was not checked, or nothing responded.
        watch: the running mean of the trust, whether it is lost, and the number of probes of the next step.
        counts: what was spent and seen, see `TangentCounts`.

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
        probes: int | None = None,
        mu: float = 1e-3,
        max_rows: float | None = None,
        parameters: Choice | Iterable[Choice] | None = None,
        evaluator: str | Evaluator = "stacked",
        seed: int = 0,
        chunk: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        max_dropped: float = 0.5,
        trust_policy: TrustPolicy = TrustPolicy(),  # noqa: B008 - frozen
        replays: int | None = None,
        max_age: int | None = None,
        clip: float | None = 2.0,
        steps: int | None = None,
        excite: float | None = None,
        imaginations: int | None = None,
    ) -> None:
        check_mu("TangentGradient", mu)
        if steps is not None:
            check_count("TangentGradient", "steps", steps)
        if chunk is not None:
            check_count("TangentGradient", "chunk", chunk)
        check_fraction("TangentGradient", "max_dropped", max_dropped)
        self.network = network
        self.objective = checks.checked_objective(objective)
        self.boxes = checks.checked_boxes(boxes)
        self.tangents = checks.checked_tangents(tangent, self.boxes, seed)
        self.units = tuple(Units() for _ in self.boxes)
        probes = checks.checked_probes(probes, self.tangents)
        max_rows = checks.checked_max_rows(max_rows, probes)
        self.mu = mu
        self.parameters = Parameters(network, parameters)
        checks.check_trainable(self.parameters)
        self.evaluator = checks.checked_evaluator(evaluator)
        self.max_dropped = max_dropped
        self.counts = TangentCounts()
        self.trust: list[float | None] = []
        self.trust_of_step: float | None = None
        self.agreement: float | None = None
        self.agreement_of_rows: float | None = None
        self.missed: float | None = None
        kinds = [type(model).__name__ for model in self.tangents]
        learning = any(model.learns for model in self.tangents)
        guesses = any(model.learns_from_values for model in self.tangents)
        self._notices = Notices()
        self.watch = TrustWatch(
            trust_policy, probes, max_rows, learning, kinds, guesses, steps, self._notices
        )
        self._key = Key(seed)
        self._ranks = Ranks(process_group, "TangentGradient", TangentError)
        self._chunk = 1 if chunk is None and self._ranks.size > 1 else chunk
        if replays is not None:
            check_count("TangentGradient", "replays", replays, least=0)
        if max_age is not None:
            check_count("TangentGradient", "max_age", max_age)
        if clip is not None:
            check_number("TangentGradient", "clip", clip, least=1.0, mend="None is for no bound.")
        self._clipping = Clipping(clip if guesses else None)
        if excite is not None:
            check_number("TangentGradient", "excite", excite, least=0.0, mend="0 is for no dither.")
        self._excitation = Excitation(self.boxes, excite)
        self._windows = Windows(replays, max_age, self._notices)
        if imaginations is not None:
            check_count("TangentGradient", "imaginations", imaginations, least=0)
        self._imagination = Imagination(self.boxes, imaginations)
        if self._ranks.size == 1:  # several processes are to do the same, and may be on several machines
            self._keep_within(
                room_for(MOST_BYTES, SHARE_OF_ROWS), room_for(MOST_OF_WINDOWS, SHARE_OF_WINDOWS)
            )
        else:
            self._keep_within(MOST_BYTES, MOST_OF_WINDOWS)
        self._newest: Window | None = None  # until `replays` is asked
        self._replays = False  # whether windows are kept
        self._looks: dict[str, tuple[int, int]] = {}  # by forms of windows, see `_refuse_rows_by_place`
        self._rows = 0  # of the last step

    def backward(self, batch: Batch) -> Tensor:
        """Add this step's gradient to `.grad`, as autograd would.

        Also under `torch.no_grad()` and `torch.inference_mode()`. It is the gradient of the loss itself: a
        `torch.amp.GradScaler` would divide it by a scale that is not in it, so leave the scaler out.

        Args:
            batch: any nesting of tensors with rows first.

        Returns:
            The base loss as a detached number: the mean over the rows that did not fail.

        Raises:
            ObjectiveError: the batch or the losses do not have rows first, or the network cannot be stacked.
            ParameterError: the network is not the one that the gradient was made with, or another gradient is
                at work on its weights.
            ObjectiveError: the call is inside of autocast.
            TangentError: the objective's second evaluation differs from the first, it calls no box, probes
                of the first step change nothing, the gradient is not finite, or a process failed or has
                other weights.
            FailedQueriesError: all rows of the base failed (`FailedBatchError` if in the boxes), or more than
                `max_dropped` of the pairs.
                    In all these cases `.grad` is unchanged.
        """
        refuse_autocast(self.parameters.tensors, "TangentGradient.backward")
        at_work = self.parameters.alone("TangentGradient.backward")
        with at_work, torch.inference_mode(False):  # in which there would be no graph
            batch = map_tensors(_with_version, batch)
            number, ranks, before = self.counts.steps, self._ranks, Snapshot(self.network)
            key, probes = self._key.at(number), self.watch.probes
            ranks.refuse_others(number, lambda: fingerprint(self.network, batch, repr(self._settings(key))))
            count = count_rows(batch)
            step = Step(self.network, self.parameters, self.objective, batch, count, number=number)

            dither = self._excitation.of_step(key, self.tangents)
            with _undone(before):
                self._imagination.foresee(step, self.tangents, before)
                live: Live | None = None
                with noted() as causes:
                    if probes or ranks.size > 1 or number == 0:  # the first shows whether two are the same
                        seen = record(
                            step, self.boxes, self.evaluator, probes, self.mu, key, ranks, self._chunk, dither
                        )
                    else:
                        live = Live(step, self.boxes, self.tangents, dither)
                        seen = live.seen

                with ranks.meeting(number) as meeting:
                    base = seen.losses[0]
                    survived = survivors(base, number, causes)
                    if live is not None and not survived.all():
                        before.restore()
                        live = None
                    # Where there may ever be probes; what it finds does not change.
                    if self.watch.may_have_probes and number == 0 and isinstance(self.evaluator, Stacked):
                        refuse_unseen_weights(step, self.boxes, seen.calls, survived)
                    whole_numbers: list[str] = []
                    if number == 0:
                        whole_numbers = outputs_without_gradient(step, self.boxes, seen.calls, survived)
                    calls, kept = without_failed(survived, seen.calls, batch)
                    dither.look(calls, self.boxes)
                    pairs, dropped = self._learn(calls, survived, number)
                    units = tuple((shown.d_scale, shown.response_scale) for shown in pairs)
                    window = Window(number, kept, tuple(calls), units, base, survived)
                    if live is None:
                        again = replay(step, self.boxes, self.tangents, window, pairs)
                        loss, gradients, reached = again.loss, again.gradients, again.reached
                        if number == 0:
                            self.watch.note_way_beside(again.beside)
                    else:
                        loss, gradients = live.gradients(pairs)
                        reached = live.reached
                    checks.refuse_dependent_rows(loss, base, survived)
                    checks.refuse_not_finite(gradients, self.trust, number)
                    meeting.message = Check()
                    if ranks.rank == 0 and self.watch.checks(number):  # the first rank alone
                        with alone(ranks):
                            of = Taken(step, self.boxes, self.tangents, window, pairs, gradients, before)
                            meeting.message = checked(of, self.watch)
            check: Check = meeting.messages[0]
            share = self.watch.share(check)
            taken = gradients if share == 1.0 else [share * gradient for gradient in gradients]
            self._clipping.remember(taken)
            self._notices.say(self._clipping.of_sizes(number))
            self._add(taken)
            self._imagination.saw(calls, pairs, gradients, survived)
            refused: list[str] = []
            if self.watch.terms.guesses:
                of = replace(step, batch=kept), self.boxes, calls, survived
                with alone(ranks):
                    refused = self._excitation.saw(
                        calls, pairs, dither, reached, survived, partial(spread_of_weights, *of)
                    )
            window = replace(window, calls=tuple(call.plain() for call in window.calls))
            if self._replays:
                self._windows.add(window)
            else:
                self._newest = window
            self.agreement, self.missed = check.agreement, check.missed
            self.agreement_of_rows = check.agreement_of_rows
            self._count(probes, seen.rows, dropped, check)
            zero = not any(bool(gradient.any()) for gradient in gradients)
            if refused:
                self.watch.knows_nothing_of(number, refused)
            self._notices.say(whole_numbers_notice(number, whole_numbers))
            unmoved = checks.unmoved(pairs, dropped)
            if unmoved:
                self.watch.probes_moved_nothing(number, zero)
            if refused or (zero and (whole_numbers or unmoved)):
                self._notices.settle("zero")  # these say more of it
            begun = bool(self._excitation) and not dither  # what nobody knew of is dithered from now on
            if zero and not begun:
                one = checks.saw_one_row(self.tangents, calls, pairs)
                if number or not one:  # of one row a model knows no derivative yet
                    self._notices.say(zero_notice(number, gradients[0], ONE_ROW + CUT if one else CUT))
            self.counts.lost += int((~survived).sum())
            rows = len(survived) * self.counts.steps
            self._notices.say(
                lost_notice(number, survived, causes, batch),
                many_lost_notice(number, self.counts.lost, rows, causes),
            )
            flat = check.flat if check.flat is not None or not probes else flat_share(pairs)
            if flat is not None and zero:
                flat = None  # `zero_notice` says more of it
            self.watch.saw(number, self.trust_of_step, replace(check, flat=flat), self._improve)
            return loss

    def replays(self) -> int:
        """How many replays may follow the last step, see `replay`; 0 before the first.

        Unless the number is fixed (`replays`), there are none with a tangent whose `replayed` is False, such
        as a `StudentTangent`, which stands in front of classifiers, where a replay teaches the recorded
        noise; and none where the tangents'
        predictions of the last step's answers were off by more than ten times what they would be without
        knowing anything: the weights are then where the tangents have learned nothing.

        Windows are kept from the first call of this method on.
        """
        if not self._replays:
            self._replays = True
            if self._newest is not None:
                self._windows.add(self._newest)
                self._newest = None
        error = self.trust_of_step
        lost = error is not None and not error <= NOWHERE  # or NaN
        still = not all(part.replayed for tangent in self.tangents for part in tangent.parts())
        return 0 if (lost or still) and self._windows.replays is None else self._windows.trusted()

    def replay(self, rows: int | None = None) -> Tensor:
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
            rows: of the batch, drawn from all windows that are kept; None for as many as the last step had,
                and at least four.

        Returns:
            The mean loss, detached. Where loss or gradient is not finite, `.grad` is unchanged.

        Raises:
            TangentError: nothing is recorded yet; the objective makes other calls than were recorded, calls
                a box that is not in `boxes`, or asks boxes for rows in another order than that of the batch;
                or the batch holds a list with an entry for each row. `.grad` is unchanged.
            ObjectiveError: the batch holds a jagged tensor, of which no rows can be drawn.
        """
        refuse_autocast(self.parameters.tensors, "TangentGradient.replay")
        at_work = self.parameters.alone("TangentGradient.replay")
        with at_work, torch.inference_mode(False):  # in which there would be no graph
            if rows is not None:
                check_count("TangentGradient.replay", "rows", rows)
            drawn = self._windows.draw(rows, self._key)
            count, number = len(drawn.losses), self.counts.steps
            step = Step(self.network, self.parameters, self.objective, drawn.batch, count, number=number)
            self.parameters.refuse_replaced(self.network)
            self._refuse_rows_by_place(drawn)
            try:
                losses, gradients = anchored(step, self.boxes, self.tangents, drawn)
            except Exception as error:
                checks.refuse_fixed_rows(error, count, len(self._windows.last.survived))
                raise
            losses = losses[drawn.survived]
            loss = mean_loss(losses)
            self._windows.replayed(losses, drawn.losses[drawn.survived])
            self.counts.replays += 1
            if loss.isfinite() and all(bool(gradient.isfinite().all()) for gradient in gradients):
                self._add(gradients)
            return loss

    def imaginations(self) -> int:
        """How many imagined batches may follow the last step, see `imagine`; 0 in the first ones.

        Unless the number is fixed (`imaginations`), it begins with nine and grows by half with each window in
        which the gradient through the tangents' values is near the one that the step takes, to at most 59;
        there are none where their mean difference over the last windows is larger than the mean gradient.
        Windows are judged so from the first call of this method on.
        """
        self._imagination.wanted = True
        return self._imagination.trusted()

    def imagine(self, batch: Batch) -> Imagined:
        """Add to `.grad` the gradient on a batch that no box has answered, by the tangents' own values.

            for batch in loader:
                optimizer.zero_grad(); gradient.backward(batch); optimizer.step()
                for _ in range(gradient.replays()):
                    optimizer.zero_grad(); gradient.replay(); optimizer.step()
                for _ in range(gradient.imaginations()):
                    optimizer.zero_grad()
                    if gradient.imagine(fresh()):
                        optimizer.step()

        For batches that cost no row, as initial states and targets of a controller. No box runs: call k is
        answered by M(x). Unlike a replay this is exact nowhere, so nothing is added where the tangents are
        not to be believed (see `imaginations`). Rows in which a box would be asked far from what it was
        asked so far are left out. See `zo.tangents.replay.imagination`.

        Args:
            batch: as for `backward`, of any number of rows, and such rows as those have.

        Returns:
            What came of it, see `zo.tangents.Imagined`; false where nothing was added.

        Raises:
            TangentError: the objective calls a box that is not in `boxes`. `.grad` is unchanged.
            ObjectiveError: the batch or the losses do not have rows first.
        """
        refuse_autocast(self.parameters.tensors, "TangentGradient.imagine")
        at_work = self.parameters.alone("TangentGradient.imagine")
        with at_work, torch.inference_mode(False):  # in which there would be no graph
            batch = map_tensors(_with_version, batch)
            self.parameters.refuse_replaced(self.network)
            count, number = count_rows(batch), self.counts.steps
            step = Step(self.network, self.parameters, self.objective, batch, count, number=number)
            imagined, gradients = self._imagination.evaluate(step, self.tangents)
            if imagined:
                self.counts.imagined += 1
                self._add(gradients)
            return imagined

    def _refuse_rows_by_place(self, drawn: Window) -> None:
        """See whether rows may be drawn: behind 0, 1, 2, 4, 8, ... replays.

        Weights that begin at zero show nothing at first. The last batch is looked at, or what was drawn where
        it has a single row.
        """
        form, replays = repr(drawn.form), self.counts.replays
        due, looks = self._looks.get(form, (0, 0))
        if replays < due:
            return
        last = self._windows.last
        window = last if len(last.survived) > 1 else drawn
        if len(window.survived) > 1:
            rows, number = len(window.survived), self.counts.steps
            step = Step(self.network, self.parameters, self.objective, window.batch, rows, number=number)
            refuse_rows_by_place(step, self.boxes, window, looks)
            self._looks[form] = max(1, 2 * replays), looks + 1

    def prefit(self, batches: Iterable[Any], steps: int = 400) -> None:
        """Let the tangents learn before the first step, from the boxes' answers on some batches.

        Each batch costs the boxes the rows of a base, which are counted; rows that a `Cached` knows cost
        nothing. If you have answers from elsewhere, pass them to a tangent's own `fit`.

        Args:
            batches: the batches, each as for `backward`.
            steps: learning steps, for tangents that learn in steps.

        Raises:
            ConfigurationError: neither a tangent nor its prior learns from values, or there is no batch.
            TangentError, FailedQueriesError, ObjectiveError: as `backward`.
        """
        check_count("TangentGradient.prefit", "steps", steps)
        refuse_autocast(self.parameters.tensors, "TangentGradient.prefit")
        checks.refuse_without_values(self.tangents)
        key, asked = self._key.at(self.counts.steps), set[int]()
        for batch in batches:
            step = Step(self.network, self.parameters, self.objective, batch, count_rows(batch))
            before = Snapshot(self.network)
            with noted() as causes:
                seen = record(
                    step, self.boxes, self.evaluator, 0, self.mu, key, self._ranks, self._chunk, Dither()
                )
            before.restore()  # running statistics, and what is drawn in the first step
            survived = survivors(seen.losses[0], self.counts.steps, causes)
            self.counts.rows += seen.rows
            for call in seen.calls:
                bring(self.tangents[call.box], call.inputs[0].device)
                self.tangents[call.box].see(call.pairs(self.boxes[call.box], survived))
                asked.add(call.box)
        if not asked:
            raise ConfigurationError(
                "TangentGradient.prefit: expected at least one batch, got none. Give a list of batches, as "
                "for backward."
            )
        for box in asked:  # one that was not called has nothing to learn from
            self.tangents[box].learn(steps)

    @property
    def excitation(self) -> tuple[dict[str, Tensor], ...]:
        """For each box the standard deviation of the next dither, by the name of the input, number by number.

        Inputs that are not dithered are left out: most boxes have none.
        """
        return tuple(
            {box.inputs[which].name: size for which, size in self._excitation.sizes(place).items()}
            for place, box in enumerate(self.boxes)
        )

    @property
    def waited(self) -> float:
        """Seconds that this process has waited for the others' answers, since it was made."""
        return self._ranks.waited

    def next_queries(self) -> int:
        """What the next step will cost: perturbed objectives, the base evaluation not counted.

        `counts.queries` has those of all steps so far.

        A check that finds fault takes one more, the first of these two, and so does each where rounding of a
        box's outputs would hide what it asks for; those that noise would hide take none.
        """
        return self.watch.probes + self.watch.checks(self.counts.steps)

    def metrics(self) -> dict[str, float]:
        """Plain numbers for a log.

        Returns:
            The counts, by name; of the last step the relative error of the tangents' predictions
            (`tangent_error`, 1 at a first step in which models of values know nothing yet; and of each call,
            from 1 on, `tangent_error_call_1`; in the first some ten steps these are nothing to act on, see
            docs/concepts/learned_tangents.md), the agreement of the loss
            with the gradient (`tangent_agreement`), that of the rows' own losses
            (`tangent_agreement_of_rows`) and the error of the responses along it (`tangent_missed`), where
            they are known, and the rows asked of the boxes (`tangent_rows`); and
            the probes of the next (`tangent_probes`), and 1 where trust is lost, else 0
            (`tangent_distrusted`). Where inputs are dithered, the response to that as a share of how much
            the outputs change (`tangent_excitation`). Where there are replays, how many may follow
            (`tangent_replays`), how many windows are kept (`tangent_windows`), and the bytes that they take
            (`tangent_window_bytes`). Where batches are imagined, how many may follow
            (`tangent_imaginations`), and by how much such gradients are off, over the mean gradient
            (`tangent_imagined_bias`).
        """
        by_name: dict[str, float | None] = dict(asdict(self.counts))
        error, values = self.trust_of_step, any(tangent.learns_from_values for tangent in self.tangents)
        if error is None and values and self.counts.steps == 1 and self.trust:
            error = 1.0
        by_name |= {"tangent_error": error, "tangent_agreement": self.agreement}
        by_name |= {"tangent_agreement_of_rows": self.agreement_of_rows, "tangent_missed": self.missed}
        by_name |= {f"tangent_error_call_{call}": error for call, error in enumerate(self.trust, start=1)}
        by_name |= {"tangent_rows": self._rows, "tangent_probes": self.watch.probes}
        by_name |= {"tangent_distrusted": self.watch.lost, "tangent_excitation": self._excitation.response}
        if self._replays:
            by_name |= {
                "tangent_replays": self.replays(),
                "tangent_windows": len(self._windows),
                "tangent_window_bytes": self._windows.size(),
            }
        if self._imagination.wanted:
            by_name |= {
                "tangent_imaginations": self.imaginations(),
                "tangent_imagined_bias": self._imagination.bias,
            }
        return {name: float(value) for name, value in by_name.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Seed, chunk, counts (draws depend on the steps in them), trust, units, what was learned."""
        return {
            "seed": self._key.seed,
            "chunk": self._chunk,
            "counts": asdict(self.counts),
            "trust": self.watch.state_dict(),
            "kinds": [repr(tangent) for tangent in self.tangents],
            "boxes": "; ".join(map(arrays_of, self.boxes)),
            "tangents": [tangent.state_dict() for tangent in self.tangents],
            "units": [units.state_dict() for units in self.units],
            "clipping": self._clipping.state_dict(),
            "windows": self._windows.state_dict() if self._replays else None,
            "imagination": self._imagination.state_dict() if self._imagination.wanted else None,
            "excitation": self._excitation.state_dict(),
            "newest": self._first_window(),
            "error": self.trust_of_step,
            "room": self._room,
        }

    def _first_window(self) -> dict[str, Any] | None:
        """That of the first step, until `replays` is asked: a run that asks later begins with a later one."""
        newest = self._newest
        if newest is None or self.counts.steps > 1 or any(unreadable(newest.batch)):
            return None
        return plain(newest)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the same bits for equal chunks.

        Raises:
            ConfigurationError: the state is of a run with another seed or chunk, other tangents, or boxes of
                other arrays.
        """
        chunk = same_chunk("TangentGradient", self._chunk, state["chunk"])
        settings = {"seed": self._key.seed, "tangents": ", ".join(map(repr, self.tangents))}
        saved = {"seed": state["seed"], "tangents": ", ".join(state["kinds"])}
        boxes = {"boxes": "; ".join(map(arrays_of, self.boxes))}
        refuse_other_run("TangentGradient", settings, saved)
        refuse_other_run("TangentGradient", boxes, state)  # versions before had none
        self._chunk = chunk
        self.counts = TangentCounts(**state["counts"])
        self.watch.load_state_dict(state["trust"])
        self._clipping.load_state_dict(state["clipping"])
        if "excitation" in state:  # versions before had none
            self._excitation.load_state_dict(state["excitation"])
        self._keep_within(*state.get("room", (MOST_BYTES, MOST_OF_WINDOWS)))
        for parts, states in ((self.tangents, state["tangents"]), (self.units, state["units"])):
            for part, kept in zip(parts, states, strict=True):
                part.load_state_dict(kept)
        for tangent in self.tangents:
            tangent.brought = False
        self.trust_of_step = state.get("error")
        newest = state.get("newest")
        self._newest = None if newest is None else window_of(newest)
        self._replays = state["windows"] is not None
        if self._replays:
            self._windows.load_state_dict(state["windows"])
        imagination = state.get("imagination")  # versions before had none
        self._imagination.wanted = imagination is not None
        if imagination is not None:
            self._imagination.load_state_dict(imagination, self.parameters.tensors[0].device)

    def __deepcopy__(self, memo: dict[int, Any]) -> TangentGradient:
        """A copy with a copy of the network; a function as objective goes on calling the same boxes."""
        if copy.deepcopy(self.objective, memo) is self.objective:
            memo.update({id(box): box for box in self.boxes})
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def __repr__(self) -> str:
        """The network's class and size, boxes, tangents, and what a step costs."""
        size = f"{type(self.network).__name__}, {self.parameters.size:,} weights"
        return (
            f"TangentGradient({size}, boxes={list(self.boxes)!r}, tangents={list(self.tangents)!r}, "
            f"probes={self.watch.probes}, mu={self.mu:g}, max_rows={self.watch.max_rows:g}, "
            f"evaluator={type(self.evaluator).__name__.lower()!r})"
        )

    def _keep_within(self, of_rows: int, of_windows: int) -> None:
        """Have rows to learn from, and windows, take at most so many bytes, wherever a run goes on."""
        self._room = of_rows, of_windows
        self._windows.most_bytes = of_windows
        for model in self.tangents:
            model.keep_within(of_rows // len(self.tangents))

    def _improve(self) -> list[str]:
        """What the tangents do from now on, since trust is lost, in words; none if nothing is left to do."""
        return [remedy for remedy in (tangent.improve() for tangent in self.tangents) if remedy is not None]

    def _learn(
        self, calls: Sequence[RecordedCall], survived: Tensor, step: int
    ) -> tuple[list[CallPairs], int]:
        """Let the tangents predict what was recorded and learn from it; the pairs, and how many failed."""
        pairs, dropped = checks.checked_pairs(self.boxes, calls, survived, self.max_dropped, step)
        squares: list[tuple[float, float] | None] = [None] * len(calls)
        for box, (tangent, units) in enumerate(zip(self.tangents, self.units, strict=True)):
            numbers = [number for number, call in enumerate(calls) if call.box == box]
            if numbers:
                measured = units.measure([pairs[number] for number in numbers])
                errors = predict_and_learn(tangent, measured)
                tangent.linearise(measured)
                for number, known, error in zip(numbers, measured, errors, strict=True):
                    pairs[number], squares[number] = known, error
        self.trust = [relative_error([of_call]) for of_call in squares]
        self.trust_of_step = relative_error(squares)
        return pairs, dropped

    def _add(self, gradients: Sequence[Tensor]) -> None:
        """Add a gradient to `.grad`, no longer than `clip` allows."""
        gradients, clipped = self._clipping.shortened(gradients)
        self.counts.clipped += clipped
        tensors = self.parameters.tensors
        adds_up = self._clipping.adds_up_to(tensors[0].grad)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            accumulate(tensor, gradient)
        self._notices.say(self._clipping.of_sums(self.counts.steps, adds_up, tensors[0].grad, clipped))

    def _count(self, probes: int, rows: int, dropped: int, check: Check) -> None:
        counts = self.counts
        self._rows = rows + check.rows
        counts.steps += 1
        counts.queries += probes + check.queries
        counts.rows += self._rows
        counts.dropped += dropped
        counts.checks += check.queries > 0
        counts.failed_checks += check.queries > 0 and self.agreement is None

    def _settings(self, key: Key) -> tuple[Any, ...]:
        """What must be the same in all processes, beside weights and batch."""
        state = replace(self.watch.state, beside=True)  # each process finds that by itself
        watched = self.watch.terms, state, self._clipping.most, self._excitation.size
        return key, self.mu, self._chunk, type(self.evaluator), watched, self.tangents


@contextmanager
def _undone(before: Snapshot) -> Iterator[None]:
    """A block that leaves a network as it was where it fails."""
    try:
        yield
    except BaseException:
        before.restore()
        raise


def _with_version(tensor: Tensor) -> Tensor:
    """A tensor that autograd can keep: those of inference mode it refuses."""
    return tensor.clone() if tensor.is_inference() else tensor
