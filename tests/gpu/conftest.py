"""Tests of what runs on a GPU, on the CPU too, so that their own code is known to work."""

import os
from contextlib import contextmanager, nullcontext

import pytest
import torch

from tests.gpu.pretended import PretendedGPU
from tests.tasks.conftest import drawing  # noqa: F401 - pictures are dots here too

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA begins: products of the same bits


def needs_gpu(count: int = 1) -> None:
    """Skip a test with a sentence where there are not so many GPUs."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        pytest.skip(f"needs {count} GPU{'s' if count > 1 else ''} that torch can use, found {found}")


@contextmanager
def always_the_same_bits():
    """Kernels that give them, and no TF32."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a test runs."""
    if request.param == "cuda":
        needs_gpu()
    with always_the_same_bits():
        yield torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")


class ThatIsThere(nullcontext):
    """The block of a real GPU."""

    pretended = False


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request):
    """`with gpu:` is a block with a GPU; where it is `pretended` there is none."""
    if request.param == "cuda":
        needs_gpu()
    with always_the_same_bits():
        yield ThatIsThere() if request.param == "cuda" else PretendedGPU()
