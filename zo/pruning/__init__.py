"""Pruning at initialization: scores for every weight, and the layer ratios read off their ranking."""

from zo.estimators.ratios import Layer, LayerRatios
from zo.pruning.layer_ratios import kept_weights, layer_ratios, ranking
from zo.pruning.scores import METHODS, Scores, scores

__all__ = [
    "METHODS",
    "Layer",
    "LayerRatios",
    "Scores",
    "kept_weights",
    "layer_ratios",
    "ranking",
    "scores",
]
