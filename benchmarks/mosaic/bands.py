"""Why a recovery by a network's tangents stalls: its gradient beside the adjoint's, by wavenumber."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.mosaic import cells
from benchmarks.mosaic.recovery import NETWORK, Search, Task

BANDS = ((0, 4), (4, 7), (7, 11), (11, 24))  # wavenumbers, the upper one not included
LOOKS = (1, 11, 31)  # evaluations


def parts(field: Tensor) -> list[Tensor]:
    """A field `(..., points, points)` by bands of wavenumbers; they add up to it."""
    points = field.shape[-1]
    along = torch.fft.fftfreq(points, dtype=torch.float64) * points
    number = torch.hypot(along[:, None], along[None, :])
    modes = torch.fft.fft2(field.double())
    return [torch.fft.ifft2(modes * ((number >= low) & (number < high))).real for low, high in BANDS]


class Looking(Search):
    """A search that compares its gradient with the adjoint's at some evaluations."""

    seen: list[dict[str, Any]]

    def backward(self) -> float:
        """As a search's."""
        loss = super().backward()
        if len(self.losses) in LOOKS:
            self.seen = [*getattr(self, "seen", []), self._look()]
        return loss

    @property
    def ended(self) -> bool:
        """After the last look."""
        return super().ended or len(self.losses) >= LOOKS[-1]

    def _look(self) -> dict[str, Any]:
        one = torch.zeros(1, 1)
        (exact,) = torch.autograd.grad(self.exact(self.field, one).mean(), [self.field.values])
        assert self.field.values.grad is not None
        off = self.field.values.detach() - self.truth
        lines = []
        for own, true, error, wanted in zip(
            parts(self.field.values.grad), parts(exact), parts(off), parts(self.truth), strict=True
        ):
            lines.append(
                {
                    "cosine": round(float((own * true).sum() / (own.norm() * true.norm())), 3),
                    "length": round(float(own.norm() / true.norm()), 3),
                    "share": round(float(true.norm() / exact.norm()), 4),
                    "error": round(float(error.norm() / self.truth.norm()), 4),
                    "truth": round(float(wanted.norm() / self.truth.norm()), 4),
                }
            )
        return {"evaluation": len(self.losses), "error": self.errors[-1], "bands": lines}


def looked(amplitude: str, task: Task, seed: int) -> dict[str, Any]:
    """The figures at each look of one search."""
    began, search = process_time(), Looking(NETWORK, task, float(amplitude), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.by_bfgs(10_000)
    return {"seed": seed, "looks": search.seen, "seconds": round(process_time() - began, 1)}


def result(
    task: Task,
    seeds: Sequence[int],
    before: Mapping[str, Any],
    keep: Callable[[dict[str, Any]], None] | None = None,
    only: str = "",
) -> dict[str, Any]:
    """Cells by amplitude, of the first seed; see `cells.of_study`."""
    names, settings = [f"{amplitude:g}" for amplitude in task.amplitudes], (task, seeds[:1], before)
    return cells.of_study("bands", names, looked, lambda *_: None, *settings, keep, only)


def table(found: Mapping[str, Any]) -> str:
    """In Markdown, a line for each band and look of the first seed."""
    heads = "amplitude", "evaluation", "wavenumbers", "cosine", "length over the adjoint's", "error", "truth"
    lines = []
    for amplitude, cell in found["cells"].items():
        for look in cell["runs"][0]["looks"] if "runs" in cell else ():
            for (low, high), line in zip(BANDS, look["bands"], strict=True):
                shown = (
                    f"{line['cosine']:.2f}",
                    f"{line['length']:.1f}",
                    f"{line['error']:.3f}",
                    f"{line['truth']:.3f}",
                )
                lines.append((amplitude, str(look["evaluation"]), f"{low} to {high - 1}", *shown))
    return (
        "The gradient by tangents of a network and a stencil beside the adjoint's, by wavenumber, on the way "
        "of L-BFGS; the error of the field and the truth itself in the band, both over the truth.\n\n"
        + protocol.markdown(heads, lines)
    )
