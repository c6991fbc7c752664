"""Scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, a data set that needs no download."""

from __future__ import annotations

import numpy as np

from blackbox.extras import import_extra


def load() -> tuple[np.ndarray, np.ndarray]:
    """The images and their labels, in the order in which scikit-learn has them: by writer, not shuffled.

    Returns:
        Images `(1797, 1, 8, 8)` float32 in [0, 1] (whole numbers of sixteenths), labels `(1797,)` int64,
        0 to 9.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = import_extra("tasks.applications.images.digits", "sklearn.datasets", "sklearn")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return images, labels.astype(np.int64)
