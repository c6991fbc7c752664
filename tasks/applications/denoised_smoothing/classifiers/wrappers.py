"""Wrappers of a classifier: images to its inputs, its answers to scores, a decoder, the count of queries."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from blackbox import ArraySpec, BlackBoxFunction, Wrapper
from blackbox.failures import Outcome
from tasks.errors import DataError

FLOOR = 1e-7  # the probability that one of zero is taken for
ROUNDED = 1e-2  # by which rounded probabilities may miss [0, 1] or a sum of one
MANY = 16  # rows; of fewer, scores may all lie in [0, 1], as those of least squares do whose sums are one


class Shaped(Wrapper):
    """Images for a box that takes their numbers as a vector, in C order, or in double precision.

    Args:
        box: the black box.
        shape: of an image, `(channels, height, width)`.
    """

    def __init__(self, box: BlackBoxFunction, shape: tuple[int, int, int]) -> None:
        super().__init__(box)
        self.inputs = (ArraySpec(box.inputs[0].name, shape),)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Reshape and cast, then run."""
        spec, images = self.box.inputs[0], inputs[0]
        return self.box.run_rows((images.reshape(-1, *spec.shape).to(spec.torch_dtype or images.dtype),))


class Clamped(Wrapper):
    """Images back into [0, 1] before the box sees them: a step of mu beside a white pixel may leave it."""

    transparent = False

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Clamp, then run."""
        return self.box.run_rows(tuple(images.clamp(0, 1) for images in inputs))


class Scored(Wrapper):
    """Scores to train on, `(classes,)`, from the answers of a service with this classifier behind it.

    Logits are scores themselves; probabilities give their logarithms, and labels one-hot vectors.

    Args:
        box: the classifier.
        gives: the kind of the classifier's answers: "logits", "probabilities" or "labels".
        answers: the kind of the service's answers: the same, probabilities from logits, or the label of
            either.
        classes: how many classes there are.
        decimals: the decimals that probabilities are rounded to; one that is rounded to zero counts as half
            of the last digit, since its logarithm would not be finite.
    """

    def __init__(
        self, box: BlackBoxFunction, gives: str, answers: str, classes: int, decimals: int | None = None
    ) -> None:
        super().__init__(box)
        self.gives, self.answers, self.classes, self.decimals = gives, answers, classes, decimals
        self.outputs = (ArraySpec("scores", (classes,)),)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run, then convert.

        Raises:
            DataError: an answer is no label, or logits come as probabilities, or the other way round.
        """
        outcome = self.box.run_rows(inputs)
        answer = outcome.outputs[0]
        if self.answers != "labels":  # the largest of scores is the same of both
            failed = torch.tensor([*outcome.failed], dtype=torch.long)
            self._check_kind(answer.cpu().double().index_fill(0, failed, math.nan))
        if self.answers == "labels":
            answer = self._one_hot(answer, outcome)
        elif self.answers == "probabilities":
            answer = answer.double() if self.gives == "probabilities" else answer.double().softmax(dim=-1)
            floor = FLOOR
            if self.decimals is not None:
                answer, floor = answer.round(decimals=self.decimals), max(FLOOR, 0.5 * 10.0**-self.decimals)
            answer = answer.clamp(min=floor).log()
        return Outcome((answer.clone(),), outcome.failed)

    def _check_kind(self, answer: Tensor) -> None:
        """Refuse answers of the other kind: their losses would have slopes, and wrong ones."""
        answer = answer[answer.isfinite().all(dim=-1)]  # the others are failed rows
        inside = bool(((answer >= -ROUNDED) & (answer <= 1 + ROUNDED)).all())
        if self.gives == "probabilities" and not inside:
            raise DataError(
                f"{self.box!r}: expected probabilities, got numbers from {float(answer.min()):.3g} to "
                f"{float(answer.max()):.3g}. Give a new run --box-gives logits, or divide percents by 100."
            )
        shares = bool(((answer >= 0) & ((answer.sum(dim=-1, keepdim=True) - 1).abs() <= ROUNDED)).all())
        if self.gives == "logits" and shares and len(answer) >= MANY:
            raise DataError(
                f"{self.box!r}: expected logits, got probabilities: numbers from 0 to 1, whose sum is 1 in "
                f"each of {len(answer)} rows. Give a new run --box-gives probabilities."
            )

    def _one_hot(self, answer: Tensor, outcome: Outcome) -> Tensor:
        answered = answer.flatten(1).isfinite().all(dim=1) if answer.ndim > 1 else answer.isfinite()
        answered[list(outcome.failed)] = False
        labels = answer.flatten() if self.gives == "labels" else answer.nan_to_num().argmax(dim=-1)
        labels = torch.where(answered, labels, 0).double()
        wrong = (labels != labels.round()) | (labels < 0) | (labels >= self.classes)
        if wrong.any():
            raise DataError(
                f"{self.box!r}: expected labels from 0 to {self.classes - 1}, got "
                f"{float(labels[wrong][0]):g}. Give classes, how many it knows."
            )
        hot = functional.one_hot(labels.long(), self.classes).double()
        return torch.where(answered[:, None], hot, math.nan)

    def __repr__(self) -> str:
        """Show the box and the conversion of its answers."""
        rounded = "" if self.decimals is None else f", decimals={self.decimals}"
        return f"Scored({self.box!r}, {self.gives!r}, {self.answers!r}{rounded})"


class Decoded(Wrapper):
    """The decoder belongs to the box: it costs no query, and differences are taken in its few numbers.

    Args:
        box: the box, which takes images.
        decoder: a frozen module, `(rows, size)` to images in [0, 1].
        size: the size of a latent vector.
    """

    def __init__(self, box: BlackBoxFunction, decoder: nn.Module, size: int) -> None:
        super().__init__(box)
        self.decoder = decoder.eval()
        self.inputs = (ArraySpec("latent", (size,)),)
        self.arrays = "torch"

    @torch.no_grad()
    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Decode, then run."""
        images = self.decoder(inputs[0].to(next(self.decoder.parameters())))
        return self.box.run_rows((images,))

    def __repr__(self) -> str:
        """Show the box and the size of its inputs."""
        return f"Decoded({self.box!r}, {self.inputs[0].shape[0]})"


class Metered(Wrapper):
    """Counts the rows that the box was ever sent, in a file that grows by a byte for each.

    Rows of earlier processes are added to the ledger when it is made. Rows that were written down but not
    asked, since the process died in between, count as asked: the count may be too large by a call, but never
    too small.

    Args:
        box: the black box.
        path: the path of the file; made if it is not there.
    """

    transparent = True
    keeps_counts = True  # what earlier processes have noted is not added to it

    def __init__(self, box: BlackBoxFunction, path: Path) -> None:
        super().__init__(box)
        self.path = path
        path.touch()
        self.ledger.count(rows_run=path.stat().st_size)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Write down, then run; rows that were run again are written down afterwards."""
        count, ledger_before = len(inputs[0]), self.ledger.copy()
        self._write(count)
        try:
            return self.box.run_rows(inputs)
        finally:
            self._write(max(0, self.ledger.since(ledger_before).rows_run - count))

    def _write(self, rows: int) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(b"." * rows)
