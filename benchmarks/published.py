"""Every published number that a benchmark stands beside, with its source.

All are from Chen, Zhang, Jia, Diffenderfer, Liu, Parasyris, Zhang, Zhang, Kailkhura and Liu, "DeepZero:
scaling up zeroth-order optimization for deep model training", ICLR 2024, arXiv:2310.02025. Methods go by our
names: CGE is cge, RGE rge, FO fo. What the publication only draws has no numbers here. Accuracies of image
classification are on CIFAR-10, in percent.
"""

from __future__ import annotations

from typing import TypeAlias

Accuracies: TypeAlias = dict[str, float]
"""In percent, by method."""

# The simple CNN by number of parameters.
FIGURE_2: dict[int, Accuracies] = {
    730: {"fo": 42.09, "cge": 41.65, "rge": 37.53},
    3700: {"fo": 60.47, "cge": 59.66, "rge": 50.06},
    6670: {"fo": 70.69, "cge": 70.04, "rge": 65.31},
    9640: {"fo": 76.64, "cge": 76.07, "rge": 70.05},
    12610: {"fo": 77.01, "cge": 76.95, "rge": 68.38},
}

# RGE on the simple CNN of 6,670 parameters by number of queries a step.
QUERY_NUMBER: dict[int, float] = {
    6670: 65.31, 4000: 55.13, 2000: 55.11, 1000: 53.15, 500: 52.10, 250: 48.89,
    100: 46.61, 50: 46.58, 25: 42.75, 10: 38.03, 5: 35.14, 1: 25.68,
}  # fmt: skip

# CGE on the simple CNN of 9,640 parameters by smoothing parameter.
SMOOTHING_PARAMETER: dict[float, float] = {
    5e-1: 32.31, 5e-2: 57.64, 5e-3: 76.67, 5e-4: 74.95, 5e-5: 74.85, 5e-6: 45.43, 5e-7: 10.0,
}  # fmt: skip

# ResNet-20 by sparsity.
FIGURE_4: dict[float, Accuracies] = {
    0.8: {"deepzero": 86.94, "fo-sparse-gradient": 90.12, "fo-sparse-weight": 88.59},
    0.9: {"deepzero": 86.46, "fo-sparse-gradient": 88.55, "fo-sparse-weight": 86.25},
    0.95: {"deepzero": 84.26, "fo-sparse-gradient": 86.98, "fo-sparse-weight": 82.95},
    0.99: {"deepzero": 73.37, "fo-sparse-gradient": 78.1, "fo-sparse-weight": 68.22},
}
FIGURE_4_DENSE: Accuracies = {"fo": 92.85}

# Certified accuracy of the black-box defence on ImageNet-10 at sigma .25, at radii 0, .25, .5, .75.
DEFENCE: dict[str, tuple[float, float, float, float]] = {
    "fo-ds": (89.33, 81.67, 68.87, 49.80),
    "zo-ae-ds": (63.60, 52.80, 43.13, 32.73),
    "deepzero": (86.02, 76.61, 61.80, 43.05),
}

# MAE of the corrected wake, figure 7, defined nowhere: what compares is the share of SRC's.
WAKE = {"SRC": 0.180, "NON": 0.153, "ZO-SOL": 0.119, "FO-SOL": 0.074}

__all__ = [
    "DEFENCE",
    "FIGURE_2",
    "FIGURE_4",
    "FIGURE_4_DENSE",
    "QUERY_NUMBER",
    "SMOOTHING_PARAMETER",
    "WAKE",
    "Accuracies",
]
