"""`LossGradient`: the gradient of a network's weights, from values of the objective alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from blackbox.checks import check_count, check_fraction
from blackbox.failures import noted
from blackbox.notices import Notices
from zo.batches import Batch
from zo.draws import DRAWN, Key
from zo.errors import ConfigurationError, RanksError
from zo.estimators.estimator import Estimator
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.generators import TRIES, DisturbedBase, Turn
from zo.execution.base import Base, behind_first_writes, evaluate_base
from zo.execution.evaluator_check import Remember, is_due, most_checks
from zo.execution.evaluator_choice import SMALLEST, Decision, Serving, StepEvaluators, candidates, chunk_size
from zo.execution.pieces import Evaluated, Pieces, evaluate, joined
from zo.execution.precision import makes_narrow, narrow_notice
from zo.execution.ranks import Group, Ranks, apart_notice, checksum, dealt, fingerprint
from zo.execution.repeats import Asker, RepeatFindings, doubt_about, most_asked, noise_of, reordered
from zo.execution.shared_rows import apart
from zo.execution.step_journal import StepJournal, Store, step_fingerprint
from zo.failed_rows import (
    UnknownSlopes,
    lost_notice,
    noise_notice,
    ranks_notice,
    refuse_too_many,
    zero_notice,
)
from zo.objective import Closure, Objective, as_objective
from zo.parameters import Choice, Parameters
from zo.perturbation import Perturbations
from zo.same_run import described, refuse_other_run, same_chunk
from zo.slopes import NOISY, warn_of_slopes


@dataclass
class QueryCounts:
    """The count of queries and rows of a gradient, since it was made.

    Attributes:
        steps: How many gradients were estimated.
        queries: Perturbed objectives, those of checks among them; the base evaluations not counted.
        checks: Queries beyond the estimators' plans: of checks of evaluators and slopes, and of sentinels.
        dropped: Queries that were left out because a row failed in them.
        lost: Rows that were left out because their loss was not finite in the base.
    """

    steps: int = 0
    queries: int = 0
    checks: int = 0
    dropped: int = 0
    lost: int = 0


class LossGradient:
    """Fills `.grad` of a network from values of an objective that cannot be differentiated.

        gradient = zo.LossGradient(network, objective, zo.CGE(mu=1e-3), seed=0)
        for batch in loader:
            optimizer.zero_grad()
            loss = gradient.backward(batch)
            optimizer.step()

    The base evaluation updates buffers (running statistics) once, as an ordinary forward pass would. The same
    applies to weights that the forward itself writes. Queries never update anything. Random layers draw the
    same masks in the base and in all queries of a step, provided they draw from torch's generators. All
    threads of a process share these: of trainings in several threads whose networks draw, one takes a step at
    a time, and a step in which another thread draws again and again is refused.

    A fast evaluator is checked against `loop` at steps 0, 1, 10, 100, 1,000 and so on, on a few weights of
    each parameter. In every stacked chunk, a variant that moves nothing must give the base's losses. If
    either check fails, a slower evaluator evaluates the step again, and a warning names the module or the
    parameter. At the same steps the base is evaluated three times, and a few queries also over half of
    `mu`. If noise is not small beside the differences that `mu` makes, or if they are no slopes (because of
    rounding, curvature or a jump), a warning says by how much, and what to do.

    Processes with the same network can share the queries and get the same result:

        torch.distributed.init_process_group("gloo")  # in train.py; torchrun --nproc-per-node=3 train.py
        gradient = zo.LossGradient(..., process_group=torch.distributed.group.WORLD)

    Args:
        network: The network whose weights get a gradient. Put several networks in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, one loss per row. `batch` is any nesting of
            tensors with rows first; rows may interact, as in batch norm. It may call black boxes; for rows
            that fail there (NaN, with `failures="keep"`), see below. Alternatively a closure without
            arguments that returns one loss or one per row, for "loop".
        estimator: The query plan, such as `zo.CGE` or `zo.RGE`.
        parameters: Names or patterns (`"*.weight"`) of the parameters to perturb; None for all that require a
            gradient.
        evaluator: "loop" evaluates one query at a time; "stacked" evaluates a chunk of queries in one pass;
            "difference", for an `OutputLoss`, propagates changes from the changed layer to the loss; "auto"
            takes the fastest that supports the objective. Or pass your own `Evaluator`.
        seed: All draws depend only on (seed, step).
        chunk: How many queries run together. Results are equal to the bit only for equal chunks. None chooses
            it at the first step, so that a chunk takes at most 1 GiB, not counting what black boxes take
            themselves; the choice is in `state_dict`. "difference" also keeps the base's activations, as
            training with autograd does: the repr shows how many bytes, and `Difference(memory=)` limits them.
        max_dropped: The fraction of a step's queries that may fail before the step raises an error. One
            query alone may fail, unless this is 0.
        process_group: Processes that all receive the whole batch and have the same random state; "gloo" or,
            for GPUs, "nccl". Each evaluates the base and its share of the chunks. All get the gradient that a
            single process would get, to the bit if devices, versions and threads are the same. None for this
            process alone; left out it is that too, with a warning where torch.distributed has several.
        first_alone: Whether the first process evaluates all queries while the others wait, because only it
            keeps the box's budget, rate or log.

    Failed rows (losses that are not finite): rows that fail in the base are taken out of every variant and
    counted as lost; a warning says so once, unless a black box failed. A query in which another row fails is
    dropped: CGE leaves its coordinate at zero, and says so where it is the same one in ten steps; RGE takes
    the mean over the rest. With central differences, where one of two is left, both take its side.

    Attributes:
        journal: Stores finished chunks of queries, so that an interrupted step only evaluates the rest and
            gives the same bits; None for no journal. With several processes each has its own, and the first
            one's must find what all of them have stored. Failed queries stay failed, as they would have
            without the interruption. But a chunk in which more than `max_dropped` of them failed, as in an
            outage of a box, is not stored, and is evaluated again.
        counts: The `QueryCounts` of all processes together; the base, which each evaluates, is not counted.

    Raises:
        ConfigurationError, ParameterError: A value is out of range, or this process is not in the group.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective | Closure,
        estimator: Estimator[Any],
        *,
        parameters: Choice | Iterable[Choice] | None = None,
        evaluator: str | Evaluator = "auto",
        seed: int = 0,
        chunk: int | None = None,
        max_dropped: float = 0.1,
        process_group: Group = ...,
        first_alone: bool = False,
    ) -> None:
        if chunk is not None:
            check_count("LossGradient", "chunk", chunk)
        check_fraction("LossGradient", "max_dropped", max_dropped)
        if not isinstance(estimator, Estimator) or not callable(objective):
            name, got = ("objective", objective) if not callable(objective) else ("estimator", estimator)
            raise ConfigurationError(
                f"LossGradient, {name}: expected objective(network, batch), then an estimator such as "
                f"zo.CGE(mu=1e-3), got {got!r}. Give them in this order, the estimator made with its mu."
            )
        self.network = network
        self.objective = as_objective(objective)
        self.estimator = estimator
        self.parameters = Parameters(network, parameters)
        self.serving = Serving(candidates(evaluator, self.objective))
        self.chunk = chunk
        self.stack: int | None = None  # of a chunk, by `stacked`; None for all
        self.max_dropped = max_dropped
        self.first_alone = first_alone
        self.counts = QueryCounts()
        self.journal: Store | None = None
        self._key = Key(seed)
        self._ranks = Ranks(process_group, "LossGradient", RanksError)
        self._says_nothing = process_group is ...  # of what other processes do
        self._first = True  # of this object's steps: there may be something in the journal
        self._unknown = UnknownSlopes()
        self._notices = Notices()

    @torch.no_grad()
    def backward(self, batch: Batch = None) -> Tensor:
        """Add this step's gradient estimate to `.grad`, as autograd would.

        It is the gradient of the loss itself: a `torch.amp.GradScaler` would divide it by a scale that is not
        in it, so leave that out. The objective runs under `torch.no_grad()`; an objective that takes a
        derivative itself, as for the residual of a differential equation, does so under
        `torch.enable_grad()`.

        Args:
            batch: Any nesting of tensors with rows first; nothing for a closure.

        Returns:
            The base loss as a detached number: the mean over the rows that did not fail.

        Raises:
            ObjectiveError: The batch or the losses do not have rows first; the objective asks autograd for
                a gradient where there is no graph; the network runs under autocast; or another thread
                draws from torch's generators all the time, and the objective too.
            FailedQueriesError: All rows of the base, or more than `max_dropped` of the queries, failed.
            RanksError: A process failed, died, or is about to take another step.
                    In all these cases `.grad`, weights, buffers and generators are unchanged.
        """
        with self.parameters.alone("LossGradient.backward"), Turn() as turn:
            for _ in range(TRIES if self._ranks.size == 1 else 0):
                try:
                    return self._backward(batch, turn)
                except DisturbedBase:  # what it changed is as it was
                    pass
            return self._backward(batch, turn)

    def _backward(self, batch: Batch, turn: Turn) -> Tensor:
        """See `backward`; the turn is ended as soon as it is known that nothing draws."""
        number, ranks, exchanges = self.counts.steps, self._ranks, Ranks.exchanges
        ranks.exchanged = 0
        with noted() as causes:
            with ranks.meeting(number, "pieces") as meeting:  # of several processes; one alone walks through
                # by what the base takes, chunks are cut, and evaluators are tried
                measure = self.chunk is None or self.serving.is_open(self.network.training)
                what = self.network, self.objective, self.parameters, batch, number
                base = evaluate_base(*what, measure=measure)
                if (measure or not number) and base.step.written:
                    base = behind_first_writes(base, lambda: evaluate_base(*what, measure=measure))
                if not base.draws:  # with others at the same time, then
                    turn.end()
                plan = self.estimator.plan(self.parameters, self._key.at(number))
                pieces = self._pieces(base, plan)
                meeting.marks = marks = self._marks(pieces, batch)
                # what serves is decided before the pieces; or what a journal has that all must know
                journaled = self._first and self.journal is not None and ranks.size > 1
                decided = journaled or self._is_due(number)
                decision = self._decision(pieces, marks) if decided else Decision()
                serving = self.serving
                meeting.message = evaluate(pieces, serving, self._share(pieces, decision.known))
            parts, beyond = [Evaluated(decision.known), *meeting.messages], 0
            faults = [part.fault for part in parts if part.fault is not None]
            if faults:  # `loop` takes the step again, and the next one looks for another evaluator
                self.serving = serving.found_wrong(self.network.training, faults[0])
                serving, beyond = serving.by_loop(), sum(part.queries for part in parts)
                with ranks.meeting(number, "pieces by loop") as meeting:
                    meeting.marks = marks
                    meeting.message = evaluate(pieces, serving, self._share(pieces))
                parts = meeting.messages
        differences, valid = joined(len(pieces), parts)
        judgement = RepeatFindings()
        if decision.noise is not None:
            judgement = self._judgement(pieces, marks, serving, decision.noise, differences, valid)

        checks = beyond + sum(part.checks for part in parts) + judgement.checks
        self.counts.queries += plan.queries + checks
        self.counts.checks += checks
        self.counts.dropped += int((~valid).sum())
        refuse_too_many(valid, self.max_dropped, number, causes)
        gradient = self.estimator.reduce(plan, differences, valid)
        base.end.restore()  # from here on nothing fails
        self.parameters.add_to_grad(gradient)
        self.counts.steps += 1
        self.counts.lost += int((~base.survived).sum())
        self._first = False
        if self._says_nothing:
            together = "process_group=torch.distributed.group.WORLD"
            self._notices.say(apart_notice("LossGradient", number, exchanges, together))
        self._tell(base, batch, judgement, differences[valid], gradient)
        self._unknown.look(number, plan, valid, self.parameters, causes)
        return base.loss()

    @property
    def exchanged(self) -> int:
        """Bytes received from all processes in the last step; 0 for a process alone."""
        return self._ranks.exchanged

    @property
    def waited(self) -> float:
        """Seconds that this process has waited for the others' answers since it was created."""
        return self._ranks.waited

    def next_queries(self) -> int:
        """The perturbed objectives that the next step's plan will cost, without the base and checks.

        `counts.queries` has those of all steps so far.
        """
        return self.estimator.queries(self.parameters, self.counts.steps)

    def most_checks(self, steps: int) -> int:
        """The most queries that the next steps take beside their plans, unless an evaluator is in doubt."""
        queries = self.next_queries()
        chunk = min(queries, self.chunk or SMALLEST)
        first = self.counts.steps
        plan = self.estimator.plan(self.parameters, self._key.at(first))
        evaluators, repeated = self.serving.evaluators, 2 + most_asked(plan)
        return sum(
            most_checks(step, self.parameters, evaluators, queries, chunk, self.stack, repeated)
            for step in range(first, first + steps)
        )

    def metrics(self) -> dict[str, float]:
        """Plain numbers for a log: the counts, by name."""
        return {name: float(count) for name, count in asdict(self.counts).items()}

    def state_dict(self) -> dict[str, Any]:
        """Seed, estimator, counts (the draws depend on the steps among them), chunk, chosen evaluators."""
        return {
            "seed": self._key.seed,
            "estimator": described(self.estimator),
            "chunk": self.chunk,
            "stack": self.stack,
            "counts": asdict(self.counts),
            "evaluators": self.serving.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ConfigurationError: The state comes from a run with another seed, estimator or chunk, or with an
                evaluator that this object does not have.
        """
        settings = {"seed": self._key.seed, "estimator": described(self.estimator)}
        refuse_other_run("LossGradient", settings, state)
        serving = self.serving.loaded(state["evaluators"])
        self.chunk = same_chunk("LossGradient", self.chunk, state["chunk"])
        self.stack = state["stack"]
        self.counts, self.serving = QueryCounts(**state["counts"]), serving
        self._first = True

    def _is_due(self, number: int) -> bool:
        """Say whether evaluators and slopes are checked at a step."""
        return is_due(number) or self.serving.is_open(self.network.training)

    def _pieces(self, base: Base, plan: Perturbations) -> Pieces:
        """Cut the plan into pieces of a size that the first step chooses."""
        if self.chunk is None:
            self.chunk, self.stack = chunk_size(self.serving.evaluators, base, plan)
        base = replace(base, step=replace(base.step, stack=self.stack))
        journal = None
        if self.journal is not None:
            key = step_fingerprint(base.step, base.losses, self._settings(base.step.number))
            journal = StepJournal(self.journal, base.step, key)
        draws = self._key.at(base.step.number).generator(DRAWN)
        drawn = int(torch.randint(plan.queries, (1,), generator=draws))
        return Pieces(base, plan, self.chunk, journal, drawn, self.max_dropped)

    def _settings(self, number: int) -> str:
        """Describe the settings of a step beside weights, batch and random state."""
        words = (self._key.at(number), described(self.estimator), self.chunk, self.stack, self.max_dropped)
        return repr((words, self.parameters.names, self.network.training))

    def _marks(self, pieces: Pieces, batch: Batch) -> dict[str, int]:
        """Checksums of the state that must be the same in all processes; none for a process alone."""
        if self._ranks.size == 1:
            return {}
        return {
            **fingerprint(self.network, batch, self._settings(pieces.base.step.number)),
            "journal": int(self.journal is not None),
            "surviving rows of the base": checksum([pieces.base.survived]),
        }

    def _share(self, pieces: Pieces, known: Collection[int] = ()) -> list[int]:
        """Return this process's share of the pieces that are not known."""
        remaining = [number for number in range(len(pieces)) if number not in known]
        rank, size = self._ranks.rank, self._ranks.size
        if self.first_alone:
            return remaining if rank == 0 else []
        return dealt(remaining, rank, size)

    def _decision(self, pieces: Pieces, marks: Mapping[str, int]) -> Decision:
        """Share the first process's decision on a step that is checked: all follow it from then on."""
        with self._ranks.meeting(pieces.base.step.number, "check") as meeting:
            meeting.marks = marks
            if self._ranks.rank == 0:
                meeting.message = self._check(pieces)
        decision: Decision = meeting.messages[0]
        self.serving = self.serving.loaded(decision.serving)
        return decision

    def _check(self, pieces: Pieces) -> Decision:
        """Check the evaluators, measure noise, and look up what the journal has."""
        base, serving, noise = pieces.base, self.serving, None
        if self._is_due(base.step.number):  # not where a step only goes on with an earlier process's
            remember: Remember = lambda _, work: work()  # noqa: E731
            if pieces.journal is not None:
                remember = pieces.journal.remember
            with apart(), base.intact():
                noise = float(remember("noise", lambda: noise_of(base)))
                if "narrow" not in self._notices.said:
                    narrow = base.narrow
                    if narrow is None:
                        narrow = bool(remember("narrow", lambda: makes_narrow(base.step, base.losses)))
                    self._notices.say(narrow_notice(base.step, base.losses) if narrow else None)
                serving = serving.checked(base, pieces.plan, pieces.chunk, remember)
        numbers = pieces.known(serving) if self._first and self._ranks.size > 1 else {}
        return Decision(serving.state_dict(), noise, numbers)

    def _judgement(
        self,
        pieces: Pieces,
        marks: Mapping[str, int],
        serving: Serving,
        before: float,
        differences: Tensor,
        valid: Tensor,
    ) -> RepeatFindings:
        """Noise, and doubt about the slopes, of a step that is checked; the first process judges.

        Args:
            pieces: All pieces of the step.
            marks: The checksums that must be the same in all processes.
            serving: The evaluators that evaluated them.
            before: The noise that was measured before the queries.
            differences: The changes by the queries, `(queries,)`.
            valid: `(queries,)` bool, False where one was dropped.
        """
        base, tally = pieces.base, pieces.base.step.tally
        with self._ranks.meeting(base.step.number, "judgement") as meeting:
            meeting.marks = marks
            loss = float(base.loss())
            meeting.message = RepeatFindings(losses=(loss,))
            if self._ranks.rank == 0:
                earlier_queries = tally.queries
                with apart(), base.intact():
                    noise = max(before, float(noise_of(base)))
                    doubt = doubt_about(
                        Asker(base, StepEvaluators(serving, base)),
                        *(pieces.plan, differences, valid, self._key.at(base.step.number)),
                        lambda key: self.estimator.plan(self.parameters, key),
                    )
                if doubt is not None and doubt.cause == "rounding" and "narrow" in self._notices.said:
                    doubt = None  # what rounds is known
                meeting.message = RepeatFindings(noise, doubt, tally.queries - earlier_queries, (loss,))
        losses = tuple(loss for judgement in meeting.messages for loss in judgement.losses)
        return replace(meeting.messages[0], losses=losses)

    def _tell(
        self, base: Base, batch: Batch, judgement: RepeatFindings, differences: Tensor, gradient: Tensor
    ) -> None:
        """Warn of lost rows, noise, other boxes, doubtful slopes and a gradient of zero, of each once.

        Of slopes not where noise alone bends them.
        """
        number, noise, doubt = base.step.number, judgement.noise, judgement.doubt
        self._notices.say(
            lost_notice(number, base.survived, base.causes, batch),
            noise_notice(number, noise, reordered(base), differences),
            ranks_notice(number, noise, judgement.losses),
        )
        size = float(differences.square().mean().sqrt()) if len(differences) else 0.0
        if doubt is not None and "slopes" not in self._notices.said and noise <= NOISY * doubt.off * size:
            warn_of_slopes(f"Step {number + 1}", doubt)
            self._notices.settle("slopes")
        self._notices.say(zero_notice(number, gradient))

    def __repr__(self) -> str:
        """The network, what of it is perturbed, the estimator and what evaluates the queries."""
        total = sum(tensor.numel() for tensor in self.network.parameters())
        return (
            f"LossGradient({type(self.network).__name__}, {self.parameters.size:,} of {total:,} weights, "
            f"{described(self.estimator)}, {self.serving!r}, chunk={self.chunk})"
        )
