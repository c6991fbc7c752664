"""A denoiser as an ONNX file that takes any number of images, held against the network it was made of."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from blackbox.extras import import_extra
from tasks.denoised_smoothing.certification.checks import check_denoiser
from tasks.errors import ProblemError

TOLERANCE = 1e-5
BATCHES = (1, 2, 5)  # that the file is checked at: alone, as it was recorded, and another
EXTRA = "export"  # of this project, which installs onnx, onnxscript and onnxruntime


def export_denoiser(network: nn.Module, path: str | os.PathLike[str], image_shape: tuple[int, ...]) -> Path:
    """Write a denoiser to an ONNX file, and check what onnxruntime makes of it.

    The input is `image`, the output `denoised`, both `(batch, channels, height, width)` of float32 with any
    batch. The clamp is not in it: it belongs to whoever puts the box behind it.

    Args:
        network: the denoiser; it is exported in evaluation mode, on the CPU, and is not changed.
        path: the file, with the weights in it. It appears only when it has passed the check.
        image_shape: `(channels, height, width)`.

    Returns:
        The path.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ProblemError: the network changes the shape of an image, cannot be exported, or onnxruntime's answers
            are off by more than 1e-5.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra("export_denoiser", module, EXTRA)
    path = Path(path)
    network = copy.deepcopy(network).cpu().float().eval()
    check_denoiser(network, image_shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(network, temporary, image_shape)
        difference = _difference(network, temporary, image_shape)
        if not difference <= TOLERANCE:  # NaN too
            raise ProblemError(
                f"export_denoiser: expected onnxruntime to agree with torch to {TOLERANCE:g}, got a "
                f"difference of {difference:.2g}. The network may draw random numbers or branch on its "
                "input's values: take that out."
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write(network: nn.Module, path: Path, shape: tuple[int, ...]) -> None:
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            torch.onnx.export(
                network, (images,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
                input_names=["image"], output_names=["denoised"], external_data=False,
            )  # fmt: skip
    except Exception as error:
        first = " ".join(str(error.__cause__ or error).split())[:300]
        raise ProblemError(
            f"export_denoiser: expected a network that torch.onnx can export, got {type(network).__name__} "
            f"({type(error).__name__}: {first}). Write its forward with torch operations alone, for any "
            "batch."
        ) from error


def _difference(network: nn.Module, path: Path, shape: tuple[int, ...]) -> float:
    """The largest difference between onnxruntime and torch, over batches of several sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    for rows in BATCHES:
        images = torch.rand(rows, *shape, generator=generator)
        with torch.no_grad():
            truth = network(images).numpy()
        found = np.asarray(session.run(None, {"image": images.numpy()})[0])
        if found.shape != truth.shape:
            raise ProblemError(
                f"export_denoiser: expected {truth.shape} from onnxruntime, got {found.shape}. "
                "Write the network's forward for any batch."
            )
        largest = float(np.maximum(largest, np.abs(found - truth).max()))  # keeps NaN
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its own code, and of packages that it does not need."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
