"""What a cache knows a torch module by: its code where torch has it, its numbers, and every setting."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import zipfile

import torch
from torch import Tensor, nn

from blackbox.wrappers.identity import described, name_of

_OF_TORCH = set(vars(nn.Module()))  # what every module has
_NUMBERED = re.compile(rb"[./]___torch_mangle_\d+")  # how often a class was scripted before in this process


def module_identity(module: nn.Module) -> str:
    """A text that two modules share only if they give the same answers.

    Parameters, buffers and printed form do not tell all: `forward` may use any attribute, such as a factor.
    So all attributes of the module and of those inside it count and must be plain data (see
    `blackbox.wrappers.identity`), unless the module has an attribute `identity`, a text, in their place.

    Raises:
        ConfigurationError: an attribute is not plain data.
    """
    total = hashlib.sha256()
    given = getattr(module, "identity", None)
    if isinstance(module, torch.jit.ScriptModule):
        for part in _saved(module):
            total.update(part)
        return f"scripted {total.hexdigest()}"
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + _bytes(tensor))
    for path, inner in module.named_modules():
        own = {key: value for key, value in vars(inner).items() if key not in _OF_TORCH}
        where = ".".join(filter(None, [type(module).__name__, path]))
        state = repr(given) if isinstance(given, str) else described(where, own)
        total.update(f"{path} {name_of(type(inner))} {state} ".encode())
    return f"{name_of(type(module))} {module!r} {total.hexdigest()}"


def _saved(module: torch.jit.ScriptModule) -> list[bytes]:
    """What torch writes of a scripted module, but for what differs each time that it is scripted."""
    with zipfile.ZipFile(io.BytesIO(module.save_to_buffer())) as archive:
        kept = (name for name in archive.namelist() if not name.endswith(".debug_pkl"))
        names = sorted(name for name in kept if "/.data/" not in name)  # there is a random number
        parts = [part for name in names for part in (name.encode(), archive.read(name))]
    return [_NUMBERED.sub(b"", part) for part in parts]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
