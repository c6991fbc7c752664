"""`Trainer`: what the methods of one seed share: images, first weights, batches, and the loop that trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import zo
from tasks.image_classification import networks
from tasks.image_classification.config import Config
from tasks.image_classification.data.augmentation import Augmentation
from tasks.image_classification.data.epochs import Epochs
from tasks.image_classification.data.images import ImageData
from tasks.image_classification.evaluation import accuracy
from tasks.image_classification.methods.gradient import Gradient
from tasks.image_classification.objective import Batch, objective
from tasks.image_classification.schedule import learning_rate, set_learning_rate
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.training import Stateful, TrainingOutcome, train
from zo.masked_step import masked_step


@dataclass(frozen=True)
class Trained:
    """A method's network with the weights that validation chose, and what its training took.

    Attributes:
        queries, dropped: perturbed objectives, those of layer ratios included; and failed ones.
        rows: images that went through the network in training.
    """

    network: nn.Module
    outcome: TrainingOutcome
    queries: int
    dropped: int
    rows: int


@dataclass(frozen=True)
class Trainer:
    """What the methods of one seed share.

    Attributes:
        run, config, data, progress: of the run; data is on the device that is trained on.
        augmentation: of the training images.
        seed: of the run's seeds; it gives first weights and all draws.
    """

    run: Run
    config: Config
    data: ImageData
    augmentation: Augmentation
    seed: int
    progress: Progress

    @cached_property
    def epochs(self) -> Epochs:
        """The training batches: the same for every method."""
        size = self.config.batch
        return Epochs(self.data.train, self.data.normalisation, self.augmentation, batch=size, seed=self.seed)

    @property
    def steps(self) -> int:
        """Optimiser steps of a training."""
        return self.config.epochs * self.epochs.steps

    @cached_property
    def objective(self) -> zo.OutputLoss:
        """The loss of every method."""
        return objective()

    def network(self) -> nn.Module:
        """A network with this seed's first weights, on the device of the images."""
        config, data = self.config, self.data
        made = networks.make(
            config.network, len(data.classes), data.image_shape, width=config.width, seed=self.seed
        )
        return made.to(data.train.pixels.device)

    def scoring_batch(self) -> Batch:
        """The training images by which weights are scored, not augmented; drawn with the seed."""
        rows = min(self.config.pruning_images, len(self.data.train))
        order = torch.randperm(
            len(self.data.train), generator=zo.estimators.Key(self.seed).generator(SCORING)
        )[:rows]
        part = self.data.train.rows(order.to(self.data.train.labels.device))
        return self.data.normalisation(part.pixels), part.labels

    def descend(
        self,
        method: str,
        network: nn.Module,
        gradient: Gradient,
        *,
        sparsity: zo.estimators.Sparsity | None = None,
        spent: int = 0,
        moves_itself: bool = False,
    ) -> Trained:
        """SGD along the method's gradient, from wherever it was left.

        Args:
            method: its name, which is the stage's.
            network: with the weights it starts from.
            gradient: of these weights.
            sparsity: whose sets alone are moved, with update "set"; None for all weights.
            spent: queries before the first step.
            moves_itself: the method moves the weights in `backward`, so that SGD has nothing to do.
        """
        config, steps = self.config, self.steps
        warm_up = min(round(config.warm_up * self.epochs.steps), steps - 1)
        highest = config.learning_rate_of(method)
        optimizer = torch.optim.SGD(
            network.parameters(), highest, momentum=config.momentum, weight_decay=config.weight_decay
        )
        parameters = zo.estimators.Parameters(network)
        state: dict[str, Stateful] = {"network": network, "optimizer": optimizer, "gradient": gradient}
        averaged = None
        if config.averaging:
            averaged = AveragedModel(
                network, multi_avg_fn=get_ema_multi_avg_fn(config.averaging), use_buffers=True
            )
            state["average"] = averaged
        judged = network if averaged is None else averaged
        on_set = sparsity if config.update == "set" else None
        done = 0

        def rows() -> int:
            return (
                gradient.counts.steps + gradient.counts.queries
            ) * config.batch + spent * self.scoring_rows

        def step(i: int) -> dict[str, float]:
            nonlocal done
            network.train()
            rate = learning_rate(highest, i, steps, warm_up)
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
            loss = gradient.backward(self.epochs.batch(i))
            if moves_itself:
                pass
            elif on_set is None:
                optimizer.step()
            else:
                masked_step(optimizer, parameters, on_set.draw(parameters, zo.estimators.Key(self.seed, i)))
            if averaged is not None:
                averaged.update_parameters(network)
            done = i + 1
            queries = spent + gradient.counts.queries
            return {"loss": loss.item(), "learning_rate": rate, "queries": queries, "images": rows()}

        def validate() -> float:
            few = min(len(self.data.validation), len(self.data.train))
            shown = self.data.train.rows(torch.arange(few, device=self._device))
            found = accuracy(judged, self.data.validation, self.data.normalisation)
            seen = accuracy(judged, shown, self.data.normalisation)
            self.run.log(self.stage(method), done, accuracy=found, training_accuracy=seen)
            return 1 - found  # NaN where a logit is: such weights are never chosen

        outcome = train(
            self.run,
            self.stage(method),
            steps=steps,
            step=step,
            state=state,
            model="network" if averaged is None else "average",
            validate=validate,
            validate_every=config.validate_every * self.epochs.steps,
            checkpoint_every=config.checkpoint_every,
            progress=self.progress,
        )
        chosen: Any = network if averaged is None else averaged.module
        queries = spent + gradient.counts.queries
        return Trained(chosen, outcome, queries, gradient.counts.dropped, rows())

    def stage(self, method: str) -> str:
        """The name of a method's stage in the run."""
        return f"seed-{self.seed}/{method}"

    @property
    def scoring_rows(self) -> int:
        """Images of the batch by which weights are scored."""
        return min(self.config.pruning_images, len(self.data.train))

    @property
    def _device(self) -> torch.device:
        return self.data.train.pixels.device


SCORING = 201  # first word of the key's path of the draw of images to score by
