"""A step of 100 columns through the clients in C and Fortran, beside FTorch's inference of the same network.

The network has the sizes of `cgdrag` in FTorch's own benchmark: for each column 42 numbers in and 40 out, in
double precision; five shared layers of 256 units and one of 64, and behind these 40 small branches.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import protocol
from benchmarks.exchange.arrays import CLOCK, client_folder, processor
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted

COLUMNS, SEEN, GIVEN = 100, 42, 40
WARM, AT_ONCE = 10, 16  # steps before the clock starts, in which TorchScript compiles
FTORCH = "FTorch, from Fortran"
TOLERANCE = 1e-9  # all contenders give the same numbers at their last step, up to the order of sums
ASK = (
    CLOCK
    + f"""
#include <math.h>
#include "bb_host.h"
static double x[{COLUMNS}][{SEEN}], y[{COLUMNS}][{GIVEN}], took;
int main(int count, char **words) {{
  int in[] = {{{COLUMNS}, {SEEN}}}, out[] = {{{COLUMNS}, {GIVEN}}}, steps = atoi(words[1]);
  double began = 0;
  for (int i = 0; i < {COLUMNS}; i++)
    for (int j = 0; j < {SEEN}; j++) x[i][j] = sin(0.1 * (i * {SEEN} + j));
  for (int k = 0; k < {WARM} + steps; k++) {{
    if (k == {WARM}) began = now();
    if (!bb_exchange("drag", x[0], 2, in, y[0], 2, out)) return 1;
    x[0][0] += 0.01;
  }}
  took = now() - began;
  bb_output("seconds", BB_DOUBLE, 0, NULL, &took);
  bb_output("drag", BB_DOUBLE, 2, out, y);
  bb_close();
}}
"""
)
FORTRAN = f"""
program columns
  use, intrinsic :: iso_fortran_env, only: real64, int64
  USE
  implicit none
  real(real64), target :: x({COLUMNS}, {SEEN}), y({COLUMNS}, {GIVEN})
  real(real64) :: took, used(2)
  integer(int64) :: began, ended, rate
  integer :: i, j, k, steps
  character(len=16) :: word
  DECLARE
  call get_command_argument(1, word)
  read (word, *) steps
  do j = 1, {SEEN}
    do i = 1, {COLUMNS}
      x(i, j) = sin(0.1_real64 * ((i - 1) * {SEEN} + j - 1))
    end do
  end do
  BEFORE
  do k = 1, {WARM} + steps
    if (k == {WARM} + 1) then
      call system_clock(began, rate)
      call cpu_time(used(1))
    end if
    STEP
    x(1, 1) = x(1, 1) + 0.01_real64
  end do
  call system_clock(ended)
  call cpu_time(used(2))
  took = real(ended - began, real64) / rate
  AFTER
end program
"""
ASKING = {
    "USE": "use bb_host",
    "DECLARE": "",
    "BEFORE": "",
    "STEP": 'if (.not. bb_exchange("drag", x, y)) stop 1',
    "AFTER": """call bb_output("seconds", took)
  call bb_output("drag", y)
  call bb_close()""",
}
INFERRING = {
    "USE": "use ftorch",
    "DECLARE": """type(torch_model) :: drag
  type(torch_tensor) :: seen(1), given(1)""",
    "BEFORE": 'call torch_model_load(drag, "drag.pt", torch_kCPU)',
    "STEP": """call torch_tensor_from_array(seen(1), x, torch_kCPU)
    call torch_tensor_from_array(given(1), y, torch_kCPU)
    call torch_model_forward(drag, seen, given)
    call torch_delete(seen)
    call torch_delete(given)""",
    "AFTER": """open (10, file="answer", access="stream", form="unformatted")
  write (10) took, used(2) - used(1), y
  close (10)""",
}


class Took(NamedTuple):
    """Seconds of all steps, those of all processors together, and the last answer."""

    seconds: float
    processor: float
    answer: np.ndarray


class Contender(NamedTuple):
    """A way to take steps, which is timed.

    Attributes:
        steps: How many steps.
        run: What takes them.
        programs: How many take them at once.
    """

    steps: int
    run: Callable[[int], Took]
    programs: int = 1


class Drag(nn.Module):
    """A network of the sizes of FTorch's `cgdrag`: `(rows, 42)` to `(rows, 40)`."""

    def __init__(self) -> None:
        super().__init__()
        shared: list[nn.Module] = [nn.BatchNorm1d(SEEN)]
        for wide, narrow in ((SEEN, 256), *[(256, 256)] * 4, (256, 64)):
            shared += [nn.Linear(wide, narrow), nn.ReLU()]
        self.shared = nn.Sequential(*shared)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(GIVEN)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The network answers `(rows, 42)`."""
        features = self.shared(x)
        return torch.cat([branch(features) for branch in self.branches], dim=1)


def fortran(
    name: str, parts: dict[str, str], folder: Path, before: Sequence[str | Path], after: Sequence[str] = ()
) -> Path:
    """A program in Fortran.

    Args:
        name: Of the program.
        parts: What it has in the places of `FORTRAN`.
        folder: Where it is built.
        before: Words of the compiler before the program.
        after: And behind it: libraries.
    """
    text = FORTRAN
    for place, part in parts.items():
        text = text.replace(place, part, 1)
    (folder / f"{name}.f90").write_text(text)
    words = ["gfortran", "-O2", *before, f"{name}.f90", "-o", name, *after]
    subprocess.run(words, cwd=folder, check=True)
    return folder / name


def with_ftorch(ftorch: Path, folder: Path) -> Path:
    """The program that calls FTorch, with the libtorch of this process.

    Args:
        ftorch: Where FTorch was installed.
        folder: Where the program is built.
    """
    library = next(ftorch.glob("lib*/libftorch.so"))
    torch_folder = Path(torch.__file__).parent / "lib"
    links = [f"-L{library.parent}", f"-L{torch_folder}", "-lftorch", "-ltorch", "-ltorch_cpu", "-lc10"]
    paths = f"-Wl,--disable-new-dtags,-rpath,{torch_folder},-rpath,{library.parent}"
    modules = next(ftorch.rglob("ftorch.mod")).parent
    return fortran("infer", INFERRING, folder, [f"-I{modules}"], [*links, paths])


def inferred(program: Path, steps: int) -> Took:
    """Time the program that calls FTorch."""
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([program, str(steps)], cwd=program.parent, env=threads, check=True)
    seconds, used, *answer = np.fromfile(program.parent / "answer")
    return Took(float(seconds), float(used), np.reshape(answer, (GIVEN, COLUMNS)).T)


def hosted(program: Path, network: Callable[[Tensor], Tensor], steps: int, rows: int = 1) -> Took:
    """Time a run: its slowest program, and the processors of all of it, start and end included."""
    call = Call("drag", sees=ArraySpec("x", (COLUMNS, SEEN)), gives=ArraySpec("y", (COLUMNS, GIVEN)))
    outputs = [ArraySpec("seconds", ()), ArraySpec("drag", (COLUMNS, GIVEN))]
    host = Hosted([program, str(steps), "{case}"], calls=[call], outputs=outputs)

    def answer(x: Tensor) -> Tensor:
        return network(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    before = processor()
    try:
        run = host.run(torch.arange(rows), drag=answer, dtype=torch.float64)
        used = (processor() - before) * steps / (WARM + steps)
        return Took(float(run.outputs["seconds"].max()), used, run.outputs["drag"][0].numpy())
    finally:
        host.close()


def seen_at(step: int) -> Tensor:
    """Return the numbers that the network sees at a step."""
    x = (0.1 * torch.arange(COLUMNS * SEEN, dtype=torch.float64)).sin().reshape(COLUMNS, SEEN)
    x[0, 0] += 0.01 * step
    return x


def alone(network: Callable[[Tensor], Tensor], steps: int) -> Took:
    """Time the network in this process."""
    x, y, began, before = seen_at(0), torch.empty(0), 0.0, 0.0
    for step in range(WARM + steps):
        if step == WARM:
            began, before = time.perf_counter(), time.process_time()
        y = network(x)
        x[0, 0] += 0.01
    return Took(time.perf_counter() - began, time.process_time() - before, y.numpy())


def contenders(network: Drag, folder: Path, steps: int, ftorch: Path | None) -> dict[str, Contender]:
    """What is timed: programs, built in a folder, and the network alone."""
    script = torch.jit.freeze(torch.jit.trace(network, torch.zeros(COLUMNS, SEEN, dtype=torch.float64)))
    torch.jit.save(script, folder / "drag.pt")
    client = client_folder()
    (folder / "ask.c").write_text(ASK)
    for_c = "cc", "-O2", f"-I{client}"
    subprocess.run([*for_c, "-c", client / "bb_host.c"], cwd=folder, check=True)
    subprocess.run([*for_c, "ask.c", "bb_host.o", "-o", "ask", "-lm"], cwd=folder, check=True)
    in_c, few = folder / "ask", max(1, steps // AT_ONCE)
    found = {
        "client in C": Contender(steps, partial(hosted, in_c, network)),
        "client in C, TorchScript": Contender(steps, partial(hosted, in_c, script)),
        f"{AT_ONCE} clients in C at once": Contender(
            few, partial(hosted, in_c, network, rows=AT_ONCE), AT_ONCE
        ),
        "in Python": Contender(steps, partial(alone, network)),
        "in Python, TorchScript": Contender(steps, partial(alone, script)),
    }
    if shutil.which("gfortran") is None:
        print("exchange: without gfortran on the PATH, the client in Fortran and FTorch are left out.")
        return found
    in_fortran = fortran("ask_fortran", ASKING, folder, [client / "bb_host.f90", "bb_host.o"])
    found["client in Fortran"] = Contender(steps, partial(hosted, in_fortran, network))
    if ftorch is None:
        print("exchange: without --ftorch DIR, an installed FTorch, its row is left out.")
        return found
    return {FTORCH: Contender(steps, partial(inferred, with_ftorch(ftorch.absolute(), folder))), **found}


@torch.no_grad()
def measured(steps: int, rounds: int, ftorch: Path | None) -> dict[str, dict[str, float]]:
    """By contender what a step takes, in milliseconds, and over FTorch's: medians over rounds.

    Args:
        steps: How many are timed, in each round.
        rounds: In each of which all contenders are timed, one after the other.
        ftorch: Where FTorch was installed; None to leave it out.

    Raises:
        RuntimeError: A contender's last answer is not the network's.
    """
    torch.manual_seed(0)
    network = Drag().double().eval()
    with tempfile.TemporaryDirectory() as folder:
        each = contenders(network, Path(folder), steps, ftorch)
        walls: dict[str, list[float]] = {name: [] for name in each}
        used: dict[str, list[float]] = {name: [] for name in each}
        for _ in range(rounds):
            for name, contender in each.items():
                took = contender.run(contender.steps)
                expected = network(seen_at(WARM + contender.steps - 1)).numpy()
                if not np.allclose(took.answer, expected, rtol=TOLERANCE, atol=TOLERANCE):
                    raise RuntimeError(f"exchange: expected the network's answer from {name}, got another.")
                walls[name].append(1e3 * took.seconds / contender.steps / contender.programs)
                used[name].append(1e3 * took.processor / contender.steps / contender.programs)
    kinds = {"milliseconds": walls, "of the processor": used}
    if FTORCH in each:
        kinds |= {"over FTorch": _over(walls), "of the processor, over FTorch": _over(used)}
    return {
        kind: {name: statistics.median(values) for name, values in times.items()}
        for kind, times in kinds.items()
    }


def _over(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Over FTorch's of the same round."""
    return {
        name: [own / other for own, other in zip(values, times[FTORCH], strict=True)]
        for name, values in times.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """In Markdown."""
    lines = [(name, *(f"{values[name]:.2f}" for values in found.values())) for name in found["milliseconds"]]
    return protocol.markdown((f"a step of {COLUMNS} columns", *found), lines)
