"""Torch's arithmetic in a process that works on a run: its threads, and the rounding of a GPU."""

from __future__ import annotations

from typing import Any

import torch


def set_torch(config: Any) -> None:
    """Set torch's own switches, those of the whole process, as the settings of a run ask.

    Args:
        config: The settings: of each `threads`, on "cuda" also that convolutions round the same in each run.
    """
    torch.set_num_threads(config.threads)
    if config.device == "cuda":
        # convolutions would round to 10 bits there, in which a step of mu is lost
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False  # kernels chosen by their times round differently in each run
