"""Sizes of outputs: the numbers that differ by decades from sample to sample."""

from __future__ import annotations

import numpy as np

from blackbox.conformance.check_report import Finding, Verdict
from blackbox.conformance.probe import Probe

MANY = 3.0  # decades: more than a mean over rows, or a model of the box, has both ends of in view
MIDDLE = (10, 90)  # percentiles: a square that comes near zero has a few small ones
FEWEST = 8  # answers of one sign, for fewer say little


def output_sizes(probe: Probe) -> Finding:
    """Answers to the samples: are there numbers of one sign that are of very different sizes?"""
    name, sentences = "output sizes", []
    for place, spec in enumerate(probe.box.outputs):
        if spec.differentiable:
            columns = probe.base[place].reshape(len(probe.base[place]), -1).astype(np.float64)
            wide = [over for column in columns.T if (over := decades(column)) > MANY]
            if wide:
                sentences.append((max(wide), spec.name, f"{len(wide)} of {columns.shape[1]}"))
    if not sentences:
        return Finding(name, Verdict.OK, "No number of an output differs by decades from sample to sample.")
    over, output, many = max(sentences)
    sentence = (
        f"{many} numbers of output {output!r} have one sign and differ by up to {over:.1f} decades in the "
        "middle four fifths of the samples. A mean over rows, and a model of the box, go by the largest "
        "alone: let the box answer the logarithm, and take the loss of that."
    )
    return Finding(name, Verdict.WARNING, sentence, over, "decades")


def decades(values: np.ndarray) -> float:
    """Return the decades over which the middle four fifths of some numbers go; 0 where their signs differ.

    Args:
        values: `(samples,)`; what is not finite is left out.
    """
    finite_values = values[np.isfinite(values)]
    if len(finite_values) < FEWEST or not ((finite_values > 0).all() or (finite_values < 0).all()):
        return 0.0
    least, most = np.percentile(np.log10(np.abs(finite_values)), MIDDLE)
    return float(most - least)
