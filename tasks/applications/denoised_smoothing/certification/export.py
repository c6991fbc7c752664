"""A denoiser as an ONNX file that takes any number of images, held against the network it was made of."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from blackbox.extras import import_extra
from blackbox.quiet_export import quiet_export
from tasks.errors import ProblemError
from tasks.folder import atomic

TOLERANCE = 1e-5
BATCHES = (2, 1, 5)  # that it is checked at: as it was recorded, alone, and another
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
    path, network = Path(path), copy.deepcopy(network).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(rows, *image_shape, generator=generator) for rows in BATCHES]
    _check(network, batches[0])
    program = _exported(network, batches[0])
    for images in batches:
        with torch.no_grad():
            truth = network(images)
        (denoised,) = program(images)
        off = (
            float((denoised - truth).abs().max())
            if denoised.shape == truth.shape == images.shape
            else math.inf
        )
        if not off <= TOLERANCE:  # NaN too
            raise ProblemError(
                f"export_denoiser: expected onnxruntime to agree with torch to {TOLERANCE:g}, and both to "
                f"give {tuple(images.shape)}, got {tuple(denoised.shape)} and a difference of {off:.2g}. The "
                "network is to draw no random numbers, not to branch on its input's values, and to keep an "
                "image's shape for any batch."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, program.model_proto.SerializeToString())
    return path


def _check(network: nn.Module, images: Tensor) -> None:
    try:
        with torch.no_grad():
            denoised = network(images)
        came = f"{tuple(denoised.shape)}" if isinstance(denoised, Tensor) else type(denoised).__name__
    except Exception as error:
        came = f"an error ({type(error).__name__}: {' '.join(f'{error}'.split())[:300]})"
    if came != (shape := f"{tuple(images.shape)}"):
        raise ProblemError(
            f"export_denoiser: expected a network that gives a tensor {shape} for images of that shape, got "
            f"{came} from {type(network).__name__}. Give the image's shape, and return the denoised images "
            "alone."
        )


def _exported(network: nn.Module, images: Tensor) -> torch.onnx.ONNXProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet_export():
            program = torch.onnx.export(
                network, (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
                input_names=["image"], output_names=["denoised"],
            )  # fmt: skip
            assert program is not None  # as it is with dynamo
            return program
    except Exception as error:
        first = " ".join(str(error.__cause__ or error).split())[:300]
        raise ProblemError(
            f"export_denoiser: expected a network that torch.onnx can export, got {type(network).__name__} "
            f"({type(error).__name__}: {first}). Write its forward with torch operations alone, for any "
            "batch."
        ) from error
