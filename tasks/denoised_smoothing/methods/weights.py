"""deepzero: sparse coordinate-wise gradients of the denoiser's own weights, no autograd anywhere."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

import zo
from tasks.denoised_smoothing import budget, smoothing_parameter
from tasks.denoised_smoothing.limits import Method
from tasks.denoised_smoothing.losses import box_loss, image_loss
from tasks.denoised_smoothing.methods.descent import Front
from tasks.denoised_smoothing.trainer import Queries, Trained, Trainer, cosine
from tasks.runs import atomic
from tasks.runs.journal import journaled
from tasks.workers import group
from zo.objective import Objective

Rows = tuple[Tensor, Tensor, Tensor]  # noisy, clean, target
RATIO_BATCH = 10**9 + 1  # number of the batch that layer ratios are found on


def deepzero(trainer: Trainer, method: Method, front: Front, queries: Queries) -> Trained:
    """DeepZero (Chen et al. 2024): what is needed where the front part cannot be differentiated either.

    A step perturbs one weight at a time, of a set that is drawn anew with the layer ratios of ZO-GraSP.
    """
    config, network = trainer.config, front.network
    mu = smoothing_parameter.find(trainer, method, trainer.box.scores, front.given, "image")
    queries.counts["mu"] += mu.queries
    step_of_weights = smoothing_parameter.of_weights(trainer, network, mu.direction)
    objective = objective_of(trainer)
    sparsity = _sparse_set(trainer, method, network, objective, step_of_weights, queries)
    gradient = zo.LossGradient(
        network,
        objective,
        zo.CGE(step_of_weights, sparsity),
        evaluator=config.evaluator,
        seed=trainer.seed,
        max_dropped=0.5,
        process_group=group.process_group(),
        first_alone=trainer.box.first_alone,
    )
    # not config.coordinates: each layer keeps one at least
    each = config.deepzero_batch * (1 + gradient.queries())
    fixed, most = queries.total + budget.validation_queries(config), config.queries_of(method.name)
    steps = budget.steps_within(most, fixed, each, method.name)
    checks = config.deepzero_batch * gradient.most_checks(steps)
    steps = budget.steps_within(most, fixed + checks, each, method.name)
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, config.zo_learning_rate, i, steps)
        optimizer.zero_grad()
        with queries.asking("training"):
            loss = gradient.backward(_rows(trainer, i))
        optimizer.step()
        return {"loss": loss.item(), "queries": queries.total, "dropped_queries": gradient.counts.dropped}

    def validate() -> float:
        with queries.asking("validation"):
            return trainer.held_out_error(network)

    state = {"network": network, "optimizer": optimizer, "queries": queries, "gradient": gradient}
    outcome = trainer.train(method.stage, steps, step, state, validate, config.validations)
    return Trained(network, outcome, queries)


def objective_of(trainer: Trainer) -> Objective:
    """The loss of the whole chain, denoiser, clamp and classifier, one for each row."""
    config, box = trainer.config, trainer.box

    def objective(network: nn.Module, batch: Rows) -> Tensor:
        noisy, clean, target = batch
        denoised = network(noisy).clamp(0, 1)
        # summed in float64: a weight moves the loss by little
        losses = box_loss(box.scores(denoised).double(), target, box.kind)
        if config.mse_weight:
            losses = losses + config.mse_weight * image_loss(denoised, clean)
        return losses

    return objective


def _rows(trainer: Trainer, i: int) -> Rows:
    batch = trainer.batch(i, trainer.config.deepzero_batch)
    return batch.noisy, batch.clean, batch.target


def _sparse_set(
    trainer: Trainer, method: Method, network: nn.Module, objective: Objective, mu: float, queries: Queries
) -> zo.estimators.Sparsity:
    """The rule that the configuration names; layer ratios are found once, and kept with the run."""
    config, size = trainer.config, sum(weight.numel() for weight in network.parameters())
    count = min(config.coordinates, size)
    if config.ratios == "uniform" or count == size:
        return zo.RandomCoordinates(count)
    path = trainer.run.path / f"layer_ratios-seed-{trainer.seed}-{method.stage}.json"
    if not path.exists():
        own = Queries(trainer.box)
        folder, rank = group.journal_folder(trainer.run.path), group.rank()
        with journaled(folder, path.stem.replace("_", "-"), trainer.box.own.ledger, rank=rank) as journal:
            with own.asking("layer ratios"):
                scores = zo.pruning.scores(
                    config.ratios,
                    network,
                    objective,
                    _rows(trainer, RATIO_BATCH),
                    mu=mu,
                    q=config.ratio_directions,
                    seed=trainer.seed,
                    evaluator=config.evaluator,
                    max_dropped=0.5,
                    journal=journal,
                    process_group=group.process_group(),
                    first_alone=trainer.box.first_alone,
                )
            ratios = zo.pruning.layer_ratios(scores, 1 - count / size, minimum=0.1 * count / size)
            atomic.write_json(path, {"ratios": ratios.to_dict(), "queries": own.total})
        trainer.progress.say(f"Layer ratios of seed {trainer.seed} ({own.total} queries):\n{ratios}")
    saved = json.loads(path.read_text(encoding="utf-8"))
    queries.counts["layer ratios"] += saved["queries"]
    return zo.LayerwiseCoordinates(zo.pruning.LayerRatios.from_dict(saved["ratios"]))
