"""`Surrogate`: trains a network through models of its boxes alone, fitted in rounds to what boxes answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.checks import check_count
from blackbox.failures import noted
from blackbox.notices import warn
from zo.batches import Batch, count_rows
from zo.errors import ConfigurationError, TangentWarning
from zo.failed_rows import survivors
from zo.objective import Objective, losses, mean_loss
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.playback.by_models import losses_by_models, place_of, unanswerable, unasked
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.record.recorded_call import RecordedCall, flat_rows, has_rows, joined_calls, refuse_arrays
from zo.tangents.tangent import Linearised

# decision 175:
ROUNDS, LEARNING, UPDATES = 6, 400, 1200  # rounds, steps of learning in each, the optimiser's steps in all
LONGEST = 1.0  # norm of a gradient


class Surrogate:
    """Trains a network through models of its boxes alone, fitted in rounds to the boxes' answers.

        optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
        surrogate = zo.tangents.Surrogate(
            network, objective, optimizer, fresh, boxes=[solver], steps=len(batches)
        )
        for batch in batches:
            loss = surrogate.step(batch)  # boxes answer; at the end of a round the network is trained

    The steps are shared out over six rounds. In a round boxes answer its batches at the weights as they are.
    At its end the models learn from all rows so far, and the network takes 200 steps of the optimiser on
    fresh batches, with the models' values and derivatives in the place of the boxes'. The rate falls along a
    cosine over all 1,200 steps. So boxes run the rows of the batches, and no more. (Dyna, Sutton 1991.)

    The network learns to exploit a model's errors: judge the result by the boxes. Each model is the first one
    of `AutoTangent`: one of a grid or a mesh, a kernel where there are few numbers, or a perceptron.

    Args:
        network: the network, which is trained in place.
        objective: `objective(network, batch) -> Tensor (rows,)`, which calls the boxes with torch tensors.
        optimizer: the optimiser of the network's weights, with the rates of the start.
        fresh: a function that gives batch k, from 0, on which the network is trained through the models. It
            may ask no box.
        boxes: the boxes that the objective calls.
        steps: how many batches boxes will answer.
        seed: the seed of all that models draw.
        falls: whether the rate falls along a cosine.

    Attributes:
        fresh: the argument of that name.
        rounds: how many rounds there are: six, or as many as steps where these are fewer.
        planned: the argument `steps`. Set it where a training gets more or fewer of them: rounds end in the
            same parts of these, and the last step takes all of the optimiser's steps that are left.
        steps: how many batches boxes have answered.
        updates: how many steps the optimiser has taken.
        error: the error of the models' predictions of the last round's answers, before they learned from
            them, over the spread of the answers: 0 is perfect, 1 is no better than the mean. None before the
            second round.

    Raises:
        ConfigurationError: a value is out of range, or a box has answers that no model of its values gives.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        fresh: Callable[[int], Batch],
        *,
        boxes: Sequence[BlackBoxFunction],
        steps: int,
        seed: int = 0,
        falls: bool = True,
    ) -> None:
        check_count("Surrogate", "steps", steps)
        if not boxes:
            raise ConfigurationError("Surrogate, boxes: expected a list of black boxes, got none. Name them.")
        if (refusal := unanswerable(boxes)) is not None:
            raise ConfigurationError(
                f"Surrogate, boxes: expected boxes that a model of values can stand for, but {refusal}. Take "
                "zo.TangentGradient, whose values are the boxes' own."
            )
        self.network, self.objective, self.boxes = network, objective, tuple(boxes)
        self.steps, self.updates = 0, 0
        self.error: float | None = None
        self._optimizer, self.fresh, self._falls = optimizer, fresh, falls
        self._models = [AutoTangent(box, seed).model for box in boxes]
        self.rounds = min(ROUNDS, steps)
        self.planned, self._ended = steps, 0  # rounds
        self._calls: list[RecordedCall] = []  # from which models have not learned yet

    def step(self, batch: Batch) -> Tensor:
        """Have the boxes answer a batch; where it is a round's last, models learn and the network is trained.

        Args:
            batch: any nesting of tensors with rows first.

        Returns:
            The mean loss by the boxes' answers, before any training in this step, detached. Rows that failed
            are left out.

        Raises:
            TangentError: the objective calls a box that is not in `boxes`, or `fresh` asks one.
            FailedBatchError, FailedQueriesError: all rows of the batch failed.
        """
        with noted() as causes:
            rows = self.ask(batch)
        self.steps += 1
        # round k ends with step k * planned // rounds
        due = min(self.rounds, (self.rounds * (self.steps + 1) - 1) // self.planned)
        if due > self._ended:
            ended, self._ended = self._ended, due
            self.learn()
            if all(model.knows for model in self._models):
                self._train(due - ended)
        return mean_loss(rows[survivors(rows, self.steps - 1, causes)])

    def ask(self, batch: Batch) -> Tensor:
        """The loss of each row by the boxes' answers, `(rows,)`, from which models learn in `learn`.

        Args:
            batch: the batch, as for `step`.
        """
        calls: list[RecordedCall] = []
        with torch.no_grad(), intercepted(partial(self._ask, calls)):
            rows = losses(self.objective, self.network, batch, count_rows(batch))
        self._calls += calls
        return rows

    def through(self, batch: Batch) -> Tensor:
        """The loss of each row by the models' values, `(rows,)`, with a graph by their derivatives.

        Args:
            batch: the batch, as for `step`.
        """

        def at(call: RecordedCall) -> Linearised:
            return self._models[call.box].at(self._as_rows(call))

        return losses_by_models("Surrogate", self.objective, self.network, batch, self.boxes, at)

    def metrics(self) -> dict[str, float]:
        """Plain numbers for a log: rounds, the optimiser's steps, and the models' error where it is known."""
        errors = {} if self.error is None else {"model_error": self.error}
        return {"rounds": float(self._ended), "updates": float(self.updates), **errors}

    def state_dict(self) -> dict[str, Any]:
        """Save the models, and rows not learned yet; network and optimiser have state of their own."""
        return {
            "steps": self.steps,
            "ended": self._ended,
            "updates": self.updates,
            "error": self.error,
            "models": [model.state_dict() for model in self._models],
            "calls": [(call.box, list(call.inputs), list(call.outputs)) for call in self._calls],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; network and optimiser are put back beside it."""
        self.steps, self._ended = state["steps"], state["ended"]
        self.updates, self.error = state["updates"], state["error"]
        for model, learned in zip(self._models, state["models"], strict=True):
            model.load_state_dict(learned)
        self._calls = [RecordedCall(box, tuple(x), tuple(y)) for box, x, y in state["calls"]]

    def learn(self) -> None:
        """Have models predict what boxes answered in the round, then learn from that."""
        missed = varied = 0.0
        for place, (box, model) in enumerate(zip(self.boxes, self._models, strict=True)):
            calls = [call for call in self._calls if call.box == place]
            if not calls:
                continue
            answered = joined_calls(calls)
            rows = self._as_rows(answered)
            if not bool(rows.alive.any()):
                continue
            values = model.at(rows).values
            if values is not None:
                y, predictions = rows.y[rows.alive].double(), values[rows.alive].double()
                unit = reciprocal(y.std(dim=0, correction=0))
                missed += float(((predictions - y) * unit).square().sum())
                varied += float(((y - y.mean(dim=0)) * unit).square().sum())
            by_spec = zip(box.outputs, answered.outputs, strict=True)
            answers = [output for spec, output in by_spec if spec.differentiable]
            model.fit(list(answered.inputs), answers, steps=LEARNING, box=box)
        self._calls = []
        self.error = math.sqrt(missed / varied) if varied else self.error
        if self._ended == self.rounds and self.error is not None and self.error > 1.0:
            warn(
                f"Surrogate: expected models that predict what boxes answer, got errors of {self.error:.2g} "
                "times its spread in the last round, and the mean has 1. The network was trained by such "
                "values: give more rows, or take zo.TangentGradient, whose values are the boxes' own.",
                TangentWarning,
            )

    def _train(self, rounds: int) -> None:
        """Take the optimiser's steps of so many rounds."""
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        weights = [weight for group in groups for weight in group["params"] if weight.requires_grad]
        try:
            for _ in range(rounds * (UPDATES // self.rounds)):
                share = 0.5 * (1 + math.cos(math.pi * self.updates / UPDATES)) if self._falls else 1.0
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate * share
                self._optimizer.zero_grad()
                with unasked("Surrogate, fresh"):
                    batch = self.fresh(self.updates)
                self.through(batch).mean().backward(inputs=weights)
                if bool(nn.utils.clip_grad_norm_(weights, LONGEST).isfinite()):
                    self._optimizer.step()
                self.updates += 1
        finally:
            self._optimizer.zero_grad()
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _ask(self, calls: list[RecordedCall], box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """Return the box's answer, and record the call."""
        place = place_of("Surrogate", box, self.boxes)
        answer = box.call(*arrays)
        if has_rows(arrays):
            refuse_arrays(box, arrays)
            several = answer if isinstance(answer, tuple) else (answer,)
            inputs, outputs = (
                tuple(flat_rows(spec, array) for spec, array in zip(specs, both, strict=True))
                for specs, both in ((box.inputs, arrays), (box.outputs, several))
            )
            calls.append(RecordedCall(place, inputs, outputs))
        return answer

    def _as_rows(self, call: RecordedCall) -> CallPairs:
        """Rows of a box as its model sees them."""
        like = call.inputs[0]
        return call.pairs(self.boxes[call.box], torch.ones(len(like), dtype=torch.bool, device=like.device))
