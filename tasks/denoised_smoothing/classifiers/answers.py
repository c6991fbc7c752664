"""What stands around a classifier: what services make of images and answers, a decoder, and the count."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from blackbox import ArraySpec, BlackBoxFunction, Outcome, Wrapper
from blackbox.checks import check_count
from tasks.denoised_smoothing.errors import LabelError

FLOOR = 1e-7  # the probability that one of zero is taken for


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


class Probabilities(Wrapper):
    """Softmax of the logits that the box answers."""

    def __init__(self, box: BlackBoxFunction) -> None:
        super().__init__(box)
        self.outputs = (ArraySpec("probabilities", box.outputs[0].shape),)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run, then softmax."""
        given = self.box.run_rows(inputs)
        return Outcome((given.outputs[0].double().softmax(dim=-1),), given.failed)


class Rounded(Wrapper):
    """Answers rounded to some decimals, as services do it.

    Args:
        box: the black box.
        decimals: digits behind the point, 0 or more.
    """

    def __init__(self, box: BlackBoxFunction, decimals: int) -> None:
        super().__init__(box)
        self.decimals = check_count("Rounded", "decimals", decimals, least=0)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run, then round."""
        given = self.box.run_rows(inputs)
        rounded = tuple(answer.double().round(decimals=self.decimals) for answer in given.outputs)
        return Outcome(rounded, given.failed)

    def __repr__(self) -> str:
        """With the number."""
        return f"Rounded({self.box!r}, decimals={self.decimals})"


class LabelsOnly(Wrapper):
    """The number of the largest answer and nothing else, as a float, so that a failed row can be NaN."""

    def __init__(self, box: BlackBoxFunction) -> None:
        super().__init__(box)
        self.outputs = (ArraySpec("label", ()),)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run, then take the largest; of equal ones the first."""
        given = self.box.run_rows(inputs)
        return Outcome((given.outputs[0].argmax(dim=-1).double(),), given.failed)


class Scores(Wrapper):
    """Numbers to train on, `(classes,)`: logits as they are, log-probabilities, or labels as one-hot vectors.

    Args:
        box: the black box.
        kind: what it answers: "logits", "probabilities" or "labels".
        classes: how many there are.
        decimals: to which it rounds probabilities; one that is rounded to zero counts as half of the last
            digit, since its logarithm would not be finite.
    """

    def __init__(self, box: BlackBoxFunction, kind: str, classes: int, decimals: int | None = None) -> None:
        super().__init__(box)
        self.kind, self.classes = kind, classes
        self.floor = FLOOR if decimals is None else max(FLOOR, 0.5 * 10.0**-decimals)
        self.outputs = (ArraySpec("scores", (classes,)),)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run, then convert.

        Raises:
            LabelError: an answer is no label.
        """
        given = self.box.run_rows(inputs)
        answer = given.outputs[0]
        if self.kind == "probabilities":
            answer = answer.double().clamp(min=self.floor).log()
        elif self.kind == "labels":
            answer = self._one_hot(answer.flatten(), given)
        return Outcome((answer.clone(),), given.failed)

    def _one_hot(self, labels: Tensor, given: Outcome) -> Tensor:
        answered = torch.ones(len(labels), dtype=torch.bool)
        answered[list(given.failed)] = False
        numbers = torch.where(answered & labels.isfinite(), labels, 0).double()
        wrong = (numbers != numbers.round()) | (numbers < 0) | (numbers >= self.classes)
        if wrong.any():
            raise LabelError(
                f"{self.box!r}: expected labels from 0 to {self.classes - 1}, got "
                f"{float(numbers[wrong][0]):g}. Give --classes, how many it knows."
            )
        hot = functional.one_hot(numbers.long(), self.classes).double()
        return torch.where(labels.isfinite()[:, None], hot, math.nan)

    def __repr__(self) -> str:
        """With what they are made of."""
        return f"Scores({self.box!r}, {self.kind!r})"


class Decoded(Wrapper):
    """The decoder belongs to the box: it costs no query, and differences are taken in its few numbers.

    Args:
        box: takes images.
        decoder: `(rows, size)` to images in [0, 1]; frozen.
        size: of a latent vector.
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
        """With the size."""
        return f"Decoded({self.box!r}, {self.inputs[0].shape[0]})"


WORD = 8  # bytes of a number in the file


class Metered(Wrapper):
    """Counts the rows that the box was ever sent, in a file that only grows.

    Those of earlier processes are added to the ledger when it is made. What was written and not asked,
    since the process died between, counts as asked: a budget may be overstated by a call, never understated.

    Args:
        box: the black box.
        path: of the file; made if it is not there.
    """

    transparent = True
    remembers = True  # a checkpoint's count is not added to it

    def __init__(self, box: BlackBoxFunction, path: Path) -> None:
        super().__init__(box)
        self.path = path
        path.touch()
        # a torn last number is that of a call which was never made
        content = path.read_bytes()
        self.before = sum(
            int.from_bytes(content[place : place + WORD], "little")
            for place in range(0, len(content) - WORD + 1, WORD)
        )
        if len(content) % WORD:
            with path.open("rb+") as file:
                file.truncate(len(content) - len(content) % WORD)
        self.ledger.count(rows_run=self.before)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Write down, then run; rows that were run again are written down afterwards."""
        count, before = len(inputs[0]), self.ledger.copy()
        self._write(count)
        try:
            return self.box.run_rows(inputs)
        finally:
            again = self.ledger.since(before).rows_run - count
            if again > 0:
                self._write(again)

    def _write(self, rows: int) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, rows.to_bytes(WORD, "little"))
        finally:
            os.close(handle)
