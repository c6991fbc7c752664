"""Denoised smoothing: a certified defence of a classifier that only answers queries."""

from tasks.applications.denoised_smoothing.certification.smoothed import SmoothedClassifier
from tasks.applications.denoised_smoothing.classifiers.sklearn_box import SklearnClassifier
from tasks.applications.denoised_smoothing.problem import DenoisedSmoothing

__all__ = ["DenoisedSmoothing", "SklearnClassifier", "SmoothedClassifier"]
