"""Images of `shapes`, kept in a file of the data folder as they are drawn, so that no start draws them anew.

The file has a record for each block of images: the SHA-256 of its pixels, and the pixels. One that is torn or
altered is drawn again. Its name has a hash of all that the images depend on.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

import tasks.applications.images.shapes
from tasks.applications.images.shapes import BLOCK, SIDE, draw_block, labels_of, shapes

WORTH = 2_000  # images that are kept: fewer are drawn in a second
_PIXELS, _SUM = BLOCK * 3 * SIDE * SIDE, 32  # bytes of a record


def kept_shapes(count: int, seed: int, folder: Path | None) -> tuple[Tensor, Tensor]:
    """Return `shapes(count, seed)`, read from the file where it was drawn before.

    Where several processes want the same images, one draws them.

    Args:
        count: Number of images.
        seed: The number of the sequence of images.
        folder: The folder of the file; a folder that cannot be written, or None, keeps none.
    """
    if folder is None or count < WORTH:
        return shapes(count, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"shapes-{seed}-{version()}.images"
        path.touch()
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed by the system however a process ends
            blocks = range(-(-count // BLOCK))
            pixels = torch.cat([_block(file, seed, block) for block in blocks])
    except OSError:
        return shapes(count, seed)
    return pixels[:count].clone(), torch.cat([labels_of(seed, block) for block in blocks])[:count].clone()


def version() -> str:
    """A hash of the code that draws them, and of torch, whose sines may round otherwise."""
    code = Path(tasks.applications.images.shapes.__file__).read_bytes()
    return sha256(code + torch.__version__.encode()).hexdigest()[:12]


def _block(file: BinaryIO, seed: int, block: int) -> Tensor:
    file.seek(block * (_SUM + _PIXELS))
    digest, content = file.read(_SUM), file.read(_PIXELS)
    if sha256(content).digest() != digest or len(content) != _PIXELS:
        content = draw_block(seed, block).numpy().tobytes()
        file.seek(block * (_SUM + _PIXELS))
        with suppress(OSError):  # a full disk keeps no more of them
            file.write(sha256(content).digest() + content)
            file.flush()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(BLOCK, 3, SIDE, SIDE)
