"""What the queries of a CGE step cost by sparsity, summed up from its blocks: DeepZero, figure 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

import zo
from benchmarks.protocol import markdown
from benchmarks.query_speed.measuring import BASELINE, BlockTimes
from benchmarks.query_speed.problems import Timed

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
RATIOS = "grasp"  # gives the layer ratios, which decide what reuse saves
MINIMUM = 1e-3  # of each layer stays; the default of a hundredth would make all layers alike at 99 %

Steps = Mapping[float, Mapping[str, float]]
"""Sparsity -> contender -> seconds of a step's queries."""


def kept(timed: Timed) -> dict[float, dict[str, int]]:
    """Sparsity -> how many weights of each block are in the sparse set; biases are all kept."""
    problem = timed.problem
    parameters = problem.parameters
    scores = zo.pruning.scores(RATIOS, problem.network, problem.objective, problem.batch, dense="*.bias")
    weights_kept = {}
    for sparsity in SPARSITIES:
        ratios = zo.pruning.layer_ratios(scores, sparsity, minimum=MINIMUM)
        named = zip(parameters.names, parameters.tensors, strict=True)
        chosen = torch.cat([torch.full((tensor.numel(),), ratios[name]) for name, tensor in named])
        weights_kept[sparsity] = {
            block.name: round(float(chosen[block.indices].sum())) for block in timed.blocks()
        }
    return weights_kept


def seconds(blocks: Sequence[BlockTimes], counts: Mapping[float, Mapping[str, int]]) -> Steps:
    """Seconds of a step's queries: the weights kept in each block times the time of a query there."""
    return {
        sparsity: {
            name: sum(count[block.block] * block.microseconds[name].median for block in blocks) / 1e6
            for name in blocks[0].microseconds
        }
        for sparsity, count in counts.items()
    }


def lines(steps: Steps) -> list[str]:
    """Markdown: a line for each sparsity, in brackets over the paper's worker, which reuses features."""
    names = list(next(iter(steps.values())))
    text = [
        "",
        f"Seconds of a step's queries, layer ratios of {RATIOS}; in brackets over {BASELINE}:",
        "",
    ]
    rows = [
        (f"{sparsity:.0%}", *(f"{step[name]:,.3g} ({step[name] / step[BASELINE]:.2f})" for name in names))
        for sparsity, step in steps.items()
    ]
    return [*text, markdown(("sparsity", *names), rows, right=True)]
