"""`Dolfinx`: a program of FEniCS in a Python of its own, which is asked and answers in numbers over pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PYTHONS = (sys.executable, "/usr/bin/python3")
ALONE = {"OMPI_MCA_ess_singleton_isolated": "1"}  # of MPI, without a daemon


@cache
def python() -> str | None:
    """A Python that has dolfinx; None where none is found."""
    for name in PYTHONS:
        try:
            words = [name, "-c", "import dolfinx, mpi4py"]
            asked = subprocess.run(words, capture_output=True, check=False, env=os.environ | ALONE)
        except OSError:
            continue
        if asked.returncode == 0:
            return name
    return None


def missing() -> str | None:
    """What is not installed, and how one gets it; None where all is."""
    return None if python() else "dolfinx not installed: apt-get install python3-dolfinx"


class Dolfinx:
    """A process that begins with its mesh: two counts, the places of the nodes, three nodes a triangle.

    Args:
        program: its text.
        *words: of its command line.

    Attributes:
        places: of the nodes, `(nodes, 2)`.
        triangles: three nodes each.
    """

    def __init__(self, program: str, *words: object) -> None:
        name = python()
        assert name is not None
        self._process = subprocess.Popen(
            [name, "-c", program, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ALONE,
        )
        nodes, triangles = self.read(2, np.int64).tolist()
        self.places = self.read(2 * nodes).reshape(nodes, 2)
        self.triangles = self.read(3 * triangles, np.int64).reshape(triangles, 3)

    def read(self, count: int, kind: Any = np.float64) -> NDArray[Any]:
        """So many numbers of eight bytes.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdout is not None
        found = self._process.stdout.read(8 * count)
        if len(found) < 8 * count:
            raise RuntimeError("dolfinx: expected an answer, got the end of its process. See its own output.")
        return np.frombuffer(found, dtype=kind)

    def write(self, *arrays: NDArray[Any]) -> None:
        """Numbers, one array after another."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(array.astype(np.float64).tobytes() for array in arrays))
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
        self._process.wait()
