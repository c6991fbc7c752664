"""Image data: CIFAR-10 and CIFAR-100, scikit-learn's digits, and `shapes`, which is drawn by rule.

Images stay on the device as uint8 and are augmented there, a batch at a time.
"""

from tasks.applications.image_classification.data.epochs import NO_AUGMENTATION, Augmentation, Epochs
from tasks.applications.image_classification.data.image_data import ImageData, Images, Normalisation
from tasks.applications.image_classification.data.loading import AUGMENTATIONS, NAMES, load

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "NO_AUGMENTATION",
    "Augmentation",
    "Epochs",
    "ImageData",
    "Images",
    "Normalisation",
    "load",
]
