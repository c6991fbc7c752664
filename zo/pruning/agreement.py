"""How far ZO scores agree with exact ones, and what follows for the layer ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from zo.draws import Key
from zo.errors import ConfigurationError
from zo.pruning.layer_ratios import LayerRatios, layer_ratios
from zo.pruning.methods import PRUNING
from zo.pruning.scores import Scores

SCALE = 2  # second word of the key's path


@dataclass(frozen=True)
class Agreement:
    """Two scores of the same weights, side by side.

    Attributes:
        weights: Spearman's rank correlation over all weights, positive where they agree on what to keep.
        inside: its mean over the layers, each ranked by itself, weighted by size: what a mask needs.
        ratios: those of the first scores.
        exact: those of the second.
        scale: those of `-theta` times white noise: what a method reaches that knows nothing but how large
            the weights of each layer are.
    """

    weights: float
    inside: float
    ratios: LayerRatios
    exact: LayerRatios
    scale: LayerRatios

    @property
    def ratio_error(self) -> float:
        """Mean over the scored weights of |ratio - exact ratio| of their layer."""
        return _error(self.ratios, self.exact, self.scale)

    @property
    def scale_error(self) -> float:
        """The same for `scale`; no smaller than `ratio_error` where the queries told something."""
        return _error(self.scale, self.exact, self.scale)

    def __str__(self) -> str:
        width = max(len(name) for name in self.scale)
        columns = ((name, self.ratios[name], self.exact[name], scale) for name, scale in self.scale.items())
        lines = [
            f"{self.ratios.method} against {self.exact.method}: rank correlation {self.weights:+.3f} over "
            f"all weights, {self.inside:+.3f} inside layers",
            f"{'layer':{width}}   ratio  exact  scale",
            *(f"{name:{width}}  {a:6.3f} {b:6.3f} {c:6.3f}" for name, a, b, c in columns),
            f"mean error of the ratios {self.ratio_error:.3f}, of the scale's {self.scale_error:.3f}",
            self.meaning(),
        ]
        return "\n".join(lines)

    def meaning(self) -> str:
        """What follows, in a sentence."""
        if self.ratio_error >= 0.9 * self.scale_error:
            return (
                "The ratios say no more than the sizes of the weights do: the queries saw noise. Raise q, "
                "or take 'magnitude' or 'synflow', which cost none."
            )
        if self.inside < 0.3:
            return "Use the ratios and draw inside layers at random: single weights are ranked by noise."
        return "Ratios and single weights can both be used."


def agreement(scores: Scores, exact: Scores, sparsity: float, *, minimum: float = 0.01) -> Agreement:
    """Compare scores, such as ZO-GraSP's, with exact ones, such as GraSP's by autograd.

    An RGE gradient from q queries has a cosine of about sqrt(q / (q + d)) with the true one (d = 270,000,
    q = 192: .03). Its noise is the same in every coordinate, so with q much below d scores are `-theta`
    times noise: single weights are ranked at random, and layers by how large their weights are, that is
    by the initialization alone. So the ratios of such a ranking stand beside: what ZO-GraSP says beyond
    them it has from the queries.

    Measured on a small ReLU CNN in float32, q = 192, sparsity .9, against GraSP by autograd:

        d         rank correlation   error of the ratios: ZO-GraSP  scale  magnitude  SynFlow
        698       .28                                      .023     .029   .063       .017
        7,112     .06                                      .050     .050   .039       .015
        215,472   .001                                     .069     .070   .022       .038

    Args:
        scores: from values.
        exact: of the same parameters.
        sparsity: at which the ratios are read off.
        minimum: as for `layer_ratios`.

    Raises:
        ConfigurationError: other parameters, or a value out of its range.
    """
    if scores.parameters.names != exact.parameters.names:
        raise ConfigurationError(
            f"agreement: expected scores of the same parameters, got {scores.parameters.names} and "
            f"{exact.parameters.names}. Give both calls the same parameters and dense."
        )
    ours, theirs = _importance(scores), _importance(exact)
    parameters = scores.parameters
    inside = [_spearman(a, b) for a, b in zip(parameters.split(ours), parameters.split(theirs), strict=True)]
    noise = torch.randn(parameters.size, generator=Key(scores.seed).generator(PRUNING, SCALE))
    scale = Scores("scale", -parameters.flat() * noise, "largest", parameters)
    sizes = [tensor.numel() for tensor in parameters.tensors]
    return Agreement(
        weights=_spearman(ours, theirs),
        inside=sum(n * r for n, r in zip(sizes, inside, strict=True)) / sum(sizes),
        ratios=layer_ratios(scores, sparsity, minimum=minimum),
        exact=layer_ratios(exact, sparsity, minimum=minimum),
        scale=layer_ratios(scale, sparsity, minimum=minimum),
    )


def _error(found: LayerRatios, exact: LayerRatios, scored: LayerRatios) -> float:
    gaps = [(layer.size, abs(found[layer.name] - exact[layer.name])) for layer in scored.layers]
    return sum(size * gap for size, gap in gaps) / sum(size for size, _ in gaps)


def _importance(scores: Scores) -> Tensor:
    """Larger where a weight is rather kept."""
    return scores.values.double() * (-1 if scores.removes == "largest" else 1)


def _spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of all entries; 0 where one side does not vary."""
    if a.unique().numel() < 2 or b.unique().numel() < 2:
        return 0.0
    result: Any = spearmanr(a.flatten().numpy(), b.flatten().numpy())
    return float(result.statistic)
