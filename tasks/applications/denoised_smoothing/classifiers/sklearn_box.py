"""Scikit-learn classifiers as black boxes: fitted ones of your own, and four of the digits that ship.

"a" and "b" are pipelines as people write them: features that hardly vary are dropped, the rest standardised.
Pixels at the border are almost always white, and divided by their tiny spread; noise there swamps all else,
so that 96 % of the clean digits are right and, at sigma .25, some 70 % ("a") or 25 % ("b") of the noisy ones.
"forest" is a random forest, "svm" an RBF-SVM.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.extras import import_extra
from blackbox.failures import Policy
from tasks.errors import DataError

TINY = 1e-300  # below it a probability is taken for it, since a logarithm of zero is not finite


class SklearnClassifier(BlackBoxFunction):
    """Log-probabilities `(classes,)` of an image, by any classifier of scikit-learn's kind.

    From a fitted pipeline of your own, in a file that `--box mine.py:make` names:

        def make():
            return SklearnClassifier(joblib.load("pipeline.joblib"), shape=(1, 28, 28), name="pipeline 7")

    A classifier without `predict_proba` is asked for its `decision_function`, whose numbers then stand for
    logits. Images are flattened in C order and given in float64.

    Args:
        classifier: a fitted classifier; its classes are the numbers 0, 1, ...
        shape: the shape of an image, `(channels, height, width)`.
        name: its name for a cache: change it whenever the answers change.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        DataError: the classes are not 0, 1, ...
    """

    def __init__(
        self,
        classifier: Any,
        shape: tuple[int, int, int],
        name: str,
        *,
        failures: Policy | None = None,
    ) -> None:
        labels = np.asarray(classifier.classes_)
        if not np.array_equal(labels, np.arange(len(labels))):
            raise DataError(
                f"SklearnClassifier, classes: expected the numbers 0 to {len(labels) - 1}, got "
                f"{labels.tolist()}. Fit it on numbered labels, with sklearn.preprocessing.LabelEncoder."
            )
        self.classifier, self.name = classifier, name
        self.inputs = (ArraySpec("image", shape),)
        self.outputs = (ArraySpec("logits", (len(labels),)),)
        super().__init__(failures=failures)

    @property
    def identity(self) -> str:
        """The name, which is to change with the answers."""
        return f"scikit-learn classifier {self.name!r}"

    def evaluate_rows(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """All rows: `(rows, channels, height, width)` to `(rows, classes)`."""
        flat = image.reshape(len(image), -1).astype(np.float64)
        if hasattr(self.classifier, "predict_proba"):
            return np.log(np.maximum(self.classifier.predict_proba(flat), TINY))
        scores = self.classifier.decision_function(flat)
        return scores if scores.ndim == 2 else np.stack([-scores / 2, scores / 2], axis=1)

    def twin(self) -> Callable[[Tensor], Tensor] | None:
        """The same function in torch, with a derivative, of a network behind scalings; None of all else."""
        from sklearn.feature_selection import VarianceThreshold
        from sklearn.neural_network import MLPClassifier
        from sklearn.preprocessing import StandardScaler

        steps = [step for _, step in getattr(self.classifier, "steps", [("", self.classifier)])]
        transforms, network = steps[:-1], steps[-1]
        scalings = all(isinstance(step, VarianceThreshold | StandardScaler) for step in transforms)
        if type(self).evaluate_rows is not SklearnClassifier.evaluate_rows:
            return None  # of a subclass, which computes something else
        if not scalings or not isinstance(network, MLPClassifier) or network.activation != "relu":
            return None
        if network.out_activation_ != "softmax":  # of two classes it has one output
            return None
        size = math.prod(self.inputs[0].shape)
        columns, shift, scale = np.arange(size), np.zeros(size), np.ones(size)
        for step in transforms:
            if isinstance(step, VarianceThreshold):
                support = step.get_support()
                columns, shift, scale = columns[support], shift[support], scale[support]
            else:
                if step.with_mean:  # else its mean is there, and not taken off
                    shift = shift + scale * step.mean_
                if step.with_std:
                    scale = scale * step.scale_
        index, mean, width = torch.tensor(columns), torch.tensor(shift), torch.tensor(scale)
        pairs = zip(network.coefs_, network.intercepts_, strict=True)
        layers = [(torch.tensor(weight), torch.tensor(bias)) for weight, bias in pairs]

        def logits(images: Tensor) -> Tensor:
            hidden = (images.flatten(1).double()[:, index] - mean) / width
            for place, (weight, bias) in enumerate(layers):
                hidden = (functional.relu(hidden) if place else hidden) @ weight.double() + bias.double()
            return functional.log_softmax(hidden, dim=1).to(images)

        return logits

    def __repr__(self) -> str:
        """Show its name."""
        return f"SklearnClassifier({self.name!r})"


THRESHOLDS = {"a": 3e-4, "b": 1e-5}  # variance below which a pixel is dropped
SHAPE = (1, 8, 8)


def embedded(name: str, images: np.ndarray, labels: np.ndarray) -> SklearnClassifier:
    """One of them, fitted anew: a second or two.

    Args:
        name: "a", "b", "forest" or "svm".
        images: `(count, 64)` in [0, 1].
        labels: `(count,)`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    classifier = _unfitted(name)
    # on one thread: sums of another number of threads round otherwise, and the box would be another
    threads = import_extra("denoised-smoothing", "threadpoolctl", "sklearn").threadpool_limits(1)
    with threads:
        classifier.fit(images.astype(np.float64), labels)
        box = SklearnClassifier(classifier, SHAPE, name)
        answers = box.evaluate_rows(images[:64].reshape(-1, *SHAPE))
    digest = hashlib.blake2b(np.round(answers, 3).tobytes(), digest_size=8).hexdigest()
    box.name = f"digits, {name}, {digest}"
    return box


def _unfitted(name: str) -> Any:
    def part(module: str) -> Any:
        return import_extra("denoised-smoothing", f"sklearn.{module}", "sklearn")

    if name == "forest":
        return part("ensemble").RandomForestClassifier(100, random_state=0)
    scaler = part("preprocessing").StandardScaler()
    selector = part("feature_selection").VarianceThreshold(THRESHOLDS.get(name, 1e-5))
    last = (
        part("svm").SVC(random_state=0)
        if name == "svm"
        else part("neural_network").MLPClassifier((64, 64), max_iter=500, random_state=0)
    )
    return part("pipeline").make_pipeline(selector, scaler, last)
