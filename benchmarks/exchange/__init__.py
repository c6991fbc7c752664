"""Exchanges of a program with its network are timed here, and a step of 100 columns beside FTorch's.

    python -m benchmarks exchange --size ci                    a few exchanges; written nowhere
    python -m benchmarks exchange --size small                 both tables, without FTorch
    python -m benchmarks exchange --size small --ftorch DIR    the second one, with FTorch

The first table has arrays of doubles of three sizes, there and back, and what each layer of the way takes.
The second one has a step of 100 columns by a network of the sizes of `cgdrag` in FTorch's own benchmark, for
clients in C and Fortran. FTorch is no dependency: build it with the libtorch of this environment's torch, and
give the folder where it was installed.

`cmake -DCMAKE_PREFIX_PATH=$(python -c "import torch; print(torch.utils.cmake_prefix_path)")
-DCMAKE_INSTALL_PREFIX=DIR` and `cmake --build . --target install` do that.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import protocol
from benchmarks.exchange import arrays, columns

STEPS, ROUNDS = 200, 5  # of columns


def main(words: Sequence[str]) -> None:
    """The command line."""
    options = protocol.options("exchange", __doc__)
    options.add_argument("--ftorch", type=Path, metavar="DIR", help="where FTorch was installed")
    asked = options.parse_args(words)
    if asked.ftorch is not None and not list(asked.ftorch.glob("lib*/libftorch.so")):
        options.error(f"--ftorch: expected a folder with lib/libftorch.so, got {asked.ftorch}.")
    torch.set_num_threads(1)
    if shutil.which("cc") is None:
        print("exchange: expected a C compiler on the PATH, got none. apt-get install gcc libc6-dev")
        return
    if asked.size == "ci":
        print(arrays.table(arrays.measured({128: 20}, 1)))
        print(columns.table(columns.measured(2, 1, asked.ftorch)))
        return
    results: dict[str, Any] = {} if asked.ftorch else {"sizes": arrays.measured(arrays.SIZES, arrays.ROUNDS)}
    results["columns"] = columns.measured(STEPS, ROUNDS, asked.ftorch)
    name = "exchange_ftorch" if asked.ftorch else "exchange"
    options_used = ["--size", asked.size, *(["--ftorch", "DIR"] if asked.ftorch else [])]
    protocol.write("exchange", options_used, results, protocol.path(name, asked.size))
    if "sizes" in results:
        print(arrays.table(results["sizes"]))
    print(columns.table(results["columns"]))
