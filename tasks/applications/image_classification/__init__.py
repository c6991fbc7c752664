"""Image classification: networks trained from scratch from function values, beside other methods."""

from tasks.applications.image_classification.classifier import Classifier, load_classifier
from tasks.applications.image_classification.problem import ImageClassification

__all__ = ["Classifier", "ImageClassification", "load_classifier"]
