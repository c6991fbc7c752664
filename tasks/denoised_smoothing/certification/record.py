"""What a certificate hangs on, in words and checksums: the JSON beside the table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.adapters.torch_module import module_identity
from blackbox.errors import ConfigurationError
from blackbox.wrappers.identity import identity
from tasks.denoised_smoothing.certification.queries import CLAMP
from tasks.denoised_smoothing.certification.settings import Settings
from tasks.denoised_smoothing.errors import BoxError


def made_record(
    box: BlackBoxFunction,
    denoiser: nn.Module | None,
    method: str,
    classes: int,
    settings: Settings,
    images: Tensor,
    indices: Sequence[int] | None,
) -> dict[str, Any]:
    """All that changes a certificate, as JSON values; the batch does not, and is not among it.

    Raises:
        BoxError: the box cannot be told from others.
    """
    try:
        known_as = identity(box)
    except ConfigurationError as error:
        raise BoxError(
            f"{box!r}: expected a box that a certificate can name, got one without an identity ({error})"
        ) from error
    return {
        "algorithm": "CERTIFY of Cohen, Rosenfeld and Kolter (2019)",
        "method": method,
        "base classifier": "box o clamp" if denoiser is None else "box o clamp o denoiser",
        "clamp": list(CLAMP),
        "box": _sha256(known_as.encode()),
        "denoiser": None if denoiser is None else denoiser_hash(denoiser),
        "classes": classes,
        "sigma": settings.sigma,
        "n0": settings.n0,
        "n": settings.n,
        "alpha": settings.alpha,
        "seed": settings.seed,
        "noise": f"PCG64, blocks of {settings.block}",
        "images": images_hash(images, indices),
    }


def denoiser_hash(denoiser: nn.Module) -> str:
    """SHA-256 of what a denoiser computes with: its classes, settings, weights and running statistics."""
    return _sha256(module_identity(denoiser).encode())


def images_hash(images: Tensor, indices: Sequence[int] | None = None) -> str:
    """SHA-256 of images and their indices, in the order of the indices."""
    places = list(range(len(images))) if indices is None else [int(index) for index in indices]
    total = hashlib.sha256()
    for index, image in sorted(zip(places, images, strict=True), key=lambda pair: pair[0]):
        numbers = image.detach().cpu().float().contiguous().numpy()
        total.update(f"{index} {numbers.shape} ".encode() + numbers.tobytes())
    return total.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
