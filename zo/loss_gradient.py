"""`LossGradient`: the gradient of a network's weights, from values of the objective alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zo.autocast import refuse_autocast
from zo.base import base_losses
from zo.description import described
from zo.distributed.fingerprints import checksum, fingerprint
from zo.distributed.queries import StepQueries
from zo.distributed.ranks import Ranks
from zo.distributed.row_blocks import cut, whole
from zo.distributed.shares import even_chunk
from zo.distributed.sharing import Opening, Sharing
from zo.draws import Key
from zo.errors import ConfigurationError, RanksError
from zo.estimators.estimator import Estimator, check_count
from zo.evaluators.checked import Checked
from zo.evaluators.choice import evaluator_of
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.loop import Loop
from zo.evaluators.preserved import Snapshot
from zo.failures import refuse_too_many, survivors
from zo.journal import Found, Journal, Page
from zo.journal import fingerprint as fingerprint_of_step
from zo.objective import Closure, Objective, as_objective
from zo.parameters import Choice, Parameters
from zo.query_counts import QueryCounts
from zo.same_run import refuse_other_run, same_chunk


class LossGradient:
    """Fills `.grad` of a network from values of an objective that cannot be differentiated.

        gradient = zo.LossGradient(network, objective, zo.CGE(mu=1e-3), seed=0)
        for batch in loader:
            optimizer.zero_grad()
            loss = gradient.backward(batch)
            optimizer.step()

    The base evaluation updates buffers (running statistics) once, as an ordinary forward would;
    queries never do. Random layers draw the same masks in the base and in all queries of a step.

    Processes with the same network can share the queries out, for the same result:

        torch.distributed.init_process_group("gloo")  # in train.py; torchrun --nproc-per-node=3 train.py
        gradient = zo.LossGradient(..., process_group=torch.distributed.group.WORLD)

    Args:
        network: several networks go in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, one loss per row. `batch` is any
            nesting of tensors with rows first; rows may interact, as in batch norm. It may call
            black boxes; a row that fails there (NaN, with `failures="keep"`) is handled as below.
            Or a closure without arguments that gives one loss or one per row, for "loop".
        estimator: the query plan.
        parameters: names or patterns (`"*.weight"`) of those to perturb; None for all that require
            a gradient.
        evaluator: "loop", one query at a time; "stacked", a chunk of queries in one pass; "auto",
            the fastest that serves the objective; or an `Evaluator` of your own. The fast ones that
            are chosen by name are checked against loop on first use.
        seed: all draws hang on (seed, step) alone.
        chunk: how many queries run together. Results are equal to the bit only for equal chunks. None to
            choose it at the first step, from `memory`; the choice is in `state_dict`.
        memory: bytes that a chunk may take, beside what black boxes take for themselves.
        max_dropped: the fraction of a step's queries that may fail before the step is an error.
        process_group: of processes that are each given the whole batch, and have the same random state;
            "gloo" or, for GPUs, "nccl". Each evaluates the base and its share of the chunks, and all come to
            the gradient that one would come to, to the bit where devices, versions and threads are alike.
            Shares follow the cost of each layer's queries, which rank 0 measures in the first steps.
            `Sharing` says what they exchange. None for this process alone.
        row_block: rows of the batch on which queries are evaluated at a time, where there are more processes
            than chunks: pieces of queries x rows are dealt out. Results are equal to the bit only for equal
            blocks, on any number of processes, one included. Refused where rows interact (batch norm in
            training), a forward draws random numbers or writes to buffers; the first step evaluates the base
            once more to see it. None for all rows together.
        first_alone: whether the first process evaluates all queries and the others wait, since only it keeps
            the box's budget, rate or log.
        autocast: only None: in mixed precision a step of mu is lost.

    Failed rows (losses that are not finite): those of the base are taken out of every variant; a query
    in which a further row fails is dropped. CGE leaves its coordinate at zero, RGE takes the mean over
    the rest.

    Attributes:
        journal: where finished chunks of queries are kept and looked for, so that a step that was
            interrupted costs no more than what was left of it, to the same bits; None for none. Of several
            processes the first one's counts, and has what all of them found.
        counts: of all processes together; the base, which each evaluates, is in none of them.

    Raises:
        ConfigurationError, ParameterError: a value out of its range; or no process group with this process.
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
        memory: int = 2**30,
        max_dropped: float = 0.1,
        process_group: dist.ProcessGroup | None = None,
        row_block: int | None = None,
        first_alone: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        if chunk is not None:
            check_count("LossGradient", "chunk", chunk)
        if row_block is not None:
            check_count("LossGradient", "row_block", row_block)
        check_count("LossGradient", "memory", memory)
        if not 0 <= max_dropped <= 1:
            raise ConfigurationError(
                f"LossGradient, max_dropped: expected a fraction in [0, 1], got {max_dropped!r}."
            )
        refuse_autocast(autocast)
        self.network = network
        self.objective = as_objective(objective)
        self.estimator = estimator
        self.parameters = Parameters(network, parameters)
        self.evaluator = evaluator_of(evaluator, self.objective)
        self.chunk = chunk
        self.row_block = row_block
        self.memory = memory
        self.max_dropped = max_dropped
        self.counts = QueryCounts()
        self.journal: Journal | None = None
        self._ranks = Ranks(process_group, "LossGradient", RanksError)
        self._sharing = Sharing(self._ranks, first_alone=first_alone)
        self._key = Key(seed)
        self._first = True  # of this object's steps

    @torch.no_grad()
    def backward(self, batch: Any = None) -> Tensor:  # noqa: ANN401
        """Add this step's gradient estimate to `.grad`, as autograd would.

        Estimators that correct a surrogate gradient take it from there, and replace it.

        Args:
            batch: any nesting of tensors with rows first; nothing for a closure.

        Returns:
            The base loss, a detached number: the mean over the rows that did not fail.

        Raises:
            ObjectiveError: the batch or the losses do not have rows first; or the network runs under
                autocast.
            FailedQueriesError: all rows of the base, or more than `max_dropped` of the queries, failed.
            RanksError: a process failed, died, or is about to take another step.
                In all these cases `.grad` is as it was.
        """
        step, ranks = self.counts.steps, self._ranks
        ranks.exchanged = 0
        ranks.refuse_others(step, lambda: fingerprint(self.network, batch, self._alike()) | self._surrogate())
        before = Snapshot(self.network)
        (queries, known, after), told = ranks.together(step, lambda: self._begin(step, batch, before))
        self._refuse_other_bases(step, told)
        self.chunk = told[0].chunk
        assert self.chunk is not None  # rank 0 chose one
        queries = replace(queries, chunk=self.chunk)
        try:
            if ranks.size == 1:
                (difference, valid), checks = queries.all()
            else:
                (difference, valid), checks = self._sharing.all(step, queries, known, told)
        finally:
            after.restore()
        self.counts.queries += queries.plan.queries + checks
        self.counts.dropped += int((~valid).sum())
        refuse_too_many(valid, self.max_dropped, step)
        gradient = self.estimator.reduce(queries.plan, difference, valid)
        if self.estimator.replaces_grad:
            for tensor in self.parameters.tensors:
                tensor.grad = None
        self.parameters.add_to_grad(gradient)
        self.counts.steps += 1
        return queries.blocks[0].base.new_tensor(told[0].loss)

    @property
    def exchanged(self) -> int:
        """Bytes that came from all processes in the last step; 0 for a process alone."""
        return self._ranks.exchanged

    @property
    def waited(self) -> float:
        """Seconds that this process has waited for the others' answers, since it was made."""
        return self._ranks.waited

    def queries(self) -> int:
        """What a step will cost: perturbed objectives, the base evaluation not counted."""
        return self.estimator.queries(self.parameters, self.counts.steps)

    def state_dict(self) -> dict[str, Any]:
        """Seed, estimator, counts (the draws hang on the steps among them), chunk, the evaluator's choice."""
        return {
            "seed": self._key.seed,
            "estimator": described(self.estimator),
            "chunk": self.chunk,
            "row_block": self.row_block,
            "counts": asdict(self.counts),
            "evaluator": self.evaluator.state_dict(),
            "costs": self._sharing.costs.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: the state is of a run with another seed, estimator, chunk or block of rows.
        """
        own = {
            "seed": self._key.seed,
            "estimator": described(self.estimator),
            "row_block": self.row_block,
        }
        refuse_other_run("LossGradient", own, {"row_block": None, **state, "seed": state["seed"]})
        self.chunk = same_chunk("LossGradient", self.chunk, state["chunk"])
        self.counts = QueryCounts(**state["counts"])
        self.evaluator.load_state_dict(state["evaluator"])
        if "costs" in state:  # earlier versions had none
            self._sharing.costs.load_state_dict(state["costs"])
        self._sharing.resumed()

    def _begin(
        self,
        step: int,
        batch: Any,  # noqa: ANN401
        before: Snapshot,
    ) -> tuple[tuple[StepQueries, dict[int, Found], Snapshot], Opening]:
        """Evaluate the base and plan the queries; leaves the network as queries must find it.

        Returns:
            The queries, the chunks of them that the journal has, the network's state after the base; and
            what the other ranks are told.
        """
        base, peak = base_losses(
            self.objective,
            self.network,
            self.parameters,
            batch,
            self.row_block,
            measure=self.chunk is None and not isinstance(self.evaluator, Loop),
            first=self._first,
            check_blocks=step == 0,
        )
        self._first = False
        after = Snapshot(self.network)
        survived = survivors(base, step)
        plan = self.estimator.plan(self.parameters, self._key.at(step))
        problem = Problem(
            self.network, self.parameters, self.objective, batch, len(base), queries=plan.queries
        )
        blocks = whole(problem, base) if self.row_block is None else cut(problem, base, self.row_block)
        first = self._ranks.rank == 0
        chunk = self.chunk
        if chunk is None and first:
            last = plan.chunk(plan.queries - 1, plan.queries)
            fit = self.evaluator.within(blocks[0].problem, last, peak, self.memory)
            chunk = even_chunk(
                plan.queries, fit, unequal=_reuses(self.evaluator) and plan.moved() is not None
            )
        before.restore()  # queries start from the state that the base started from
        page = self._page(step, problem, base, chunk) if first else None
        other = None if first else self.journal
        queries = StepQueries(blocks, plan, chunk or 0, self.evaluator, page, other)
        queries.spent()  # the base is no query: a resumed step evaluates it again
        # One process alone asks the journal right before each chunk.
        known = queries.known() if self._ranks.size > 1 else {}
        opening = self._sharing.opening(
            queries,
            checksum([survived]),
            base[survived].mean().item(),
            known,
            0 if page is None else page.queries,
        )
        return (queries, known, after), opening

    def _page(self, step: int, problem: Problem, base: Tensor, chunk: int | None) -> Page | None:
        """The journal's page of a step, None without a journal."""
        if self.journal is None:
            return None
        settings = f"{self._key.seed} {step} {described(self.estimator)} {chunk}"
        settings += "" if self.row_block is None else f" {self.row_block}"
        return Page(self.journal, self.evaluator, fingerprint_of_step(problem, base, settings))

    def _alike(self) -> str:
        """What must be the same on all ranks beside weights, batch and random state, in words."""
        kind, mode = type(self.evaluator).__name__, self.network.training
        settings = self._key.at(self.counts.steps), described(self.estimator), self.chunk, self.max_dropped
        settings = *settings, self.row_block
        return repr((settings, self.parameters.names, self.parameters.size, kind, mode))

    def _surrogate(self) -> dict[str, int]:
        """A checksum of the gradient that the estimator starts from, if it does."""
        if not self.estimator.replaces_grad:
            return {}
        grads = (tensor.grad for tensor in self.parameters.tensors)
        return {"surrogate gradient": checksum(grad for grad in grads if grad is not None)}

    def _refuse_other_bases(self, step: int, told: Sequence[Opening]) -> None:
        other = [f"rank {rank}" for rank, own in enumerate(told) if own.alive != told[0].alive]
        if other:
            raise RanksError(
                f"Step {step}: expected the same rows of the base to fail on all ranks, got others on "
                f"{', '.join(other)}. The black box is not the same there, or fails by chance: put it in a "
                "Retrying, and take the step again."
            )


def _reuses(evaluator: Evaluator) -> bool:
    """Whether a query of a late layer costs less than one of an early one."""
    return isinstance(evaluator.fast if isinstance(evaluator, Checked) else evaluator, Difference)
