"""bb_host in C, C++, Fortran and Python: the same numbers at the same indices on both sides."""

import os
import subprocess

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import RowFailedError
from tests.blackbox.adapters.hosted.programs import CLIENT, hosted

C = r"""
#include <stdio.h>
#include <stdlib.h>
#include "bb_host.h"
int main(int argc, char **argv) {
  int c = atoi(argv[argc - 1]), dims[] = {3, 2}, back[] = {2, 3}, n = 7;
  double a[3][2], b[2][3] = {{0}};
  float f[3] = {1.5f, 2.5f, 3.5f}, g[2][2] = {{0}};
  double s = 0.25 + c;
  int two[] = {2, 2}, three[] = {3};
  for (int i = 0; i < 3; i++) for (int j = 0; j < 2; j++) a[i][j] = c + i + 10 * j;
  if (!bb_exchange("turn", &a[0][0], 2, dims, &b[0][0], 2, back)) { puts("nobody"); return 0; }
  bb_put("f", BB_FLOAT, 1, three, f);
  bb_put("n", BB_INT, 0, NULL, &n);
  bb_put("s", BB_DOUBLE, 0, NULL, &s);
  bb_call("many");
  bb_get("g", BB_FLOAT, 2, two, g);
  bb_get("t", BB_DOUBLE, 0, NULL, &s);
  bb_output("b", BB_DOUBLE, 2, back, b);
  bb_output("g", BB_FLOAT, 2, two, g);
  bb_output("t", BB_DOUBLE, 0, NULL, &s);
  return 0;
}
"""
CPP = r"""
#include <cstdio>
#include <cstdlib>
#include "bb_host.hpp"
int main(int argc, char **argv) {
  int c = std::atoi(argv[argc - 1]), n = 7;
  std::vector<double> a(6), b(6);
  std::vector<float> g(4);
  double s = 0.25 + c;
  for (int i = 0; i < 3; i++) for (int j = 0; j < 2; j++) a[2 * i + j] = c + i + 10 * j;
  if (!bb::exchange("turn", a.data(), {3, 2}, b.data(), {2, 3})) { std::puts("nobody"); return 0; }
  bb::put("f", std::vector<float>{1.5f, 2.5f, 3.5f}.data(), {3});  // gone after the line
  bb::put("n", &n, {});
  bb::put("s", &s, {});
  bb::call("many");
  bb::get("g", g.data(), {2, 2});
  bb::get("t", &s, {});
  bb::output("b", b.data(), {2, 3});
  bb::output("g", g.data(), {2, 2});
  bb::output("t", &s, {});
}
"""
FORTRAN = """
program main
  use, intrinsic :: iso_fortran_env, only: real32, real64, int32
  use bb_host
  implicit none
  real(real64) :: wide(6, 2), b(2, 3), s
  real(real32) :: f(3) = [1.5, 2.5, 3.5], g(2, 2)
  integer(int32) :: n = 7
  integer :: i, j, c
  character(20) :: word
  call get_command_argument(command_argument_count(), word)
  read (word, *) c
  wide = -1000
  do j = 1, 2
    do i = 1, 3
      wide(2 * i - 1, j) = c + (i - 1) + 10 * (j - 1)
    end do
  end do
  b = 0
  if (.not. bb_exchange("turn", wide(1:5:2, :), b)) then   ! in pieces in memory
    print '(a)', "nobody"
    stop
  end if
  s = 0.25d0 + c
  call bb_put("f", f * 1.0)                                ! gone after the line
  call bb_put("n", n)
  call bb_put("s", s)
  if (.not. bb_call("many")) error stop "not answered"
  call bb_get("g", g)
  call bb_get("t", s)
  call bb_output("b", b)
  call bb_output("g", g)
  call bb_output("t", s)
end program
"""
TURN = Call("turn", sees=ArraySpec("a", (3, 2)), gives=ArraySpec("b", (2, 3)))
MANY = Call(
    "many",
    sees=[ArraySpec("f", (3,), "float32"), ArraySpec("n", (), "int32"), ArraySpec("s", ())],
    gives=[ArraySpec("g", (2, 2), "float32"), ArraySpec("t", ())],
)
OUTPUTS = [ArraySpec("b", (2, 3)), ArraySpec("g", (2, 2), "float32"), ArraySpec("t", ())]


def run(*words, cwd):
    subprocess.run([*map(str, words)], cwd=cwd, check=True, capture_output=True, timeout=120)


def built(folder, language):
    """The program of a language, compiled."""
    name = {"c": "main.c", "cpp": "main.cpp", "fortran": "main.f90"}[language]
    (folder / name).write_text({"c": C, "cpp": CPP, "fortran": FORTRAN}[language])
    flags = "-Wall", "-Werror", f"-I{CLIENT}"
    if language == "cpp":  # all by one compiler, as people do
        files = "-x", "c++", name, CLIENT / "bb_host.c"
        run("c++", "-std=c++17", "-Wextra", *flags, *files, "-o", "main", cwd=folder)
        return folder / "main"
    run("cc", "-std=c99", *flags, "-c", CLIENT / "bb_host.c", cwd=folder)
    if language == "c":
        run("cc", f"-I{CLIENT}", name, "bb_host.o", "-o", "main", cwd=folder)
    else:
        run("gfortran", "-std=f2008", CLIENT / "bb_host.f90", name, "bb_host.o", "-o", "main", cwd=folder)
    return folder / "main"


LANGUAGES = [
    pytest.param("c", marks=pytest.mark.needs("cc")),
    pytest.param("cpp", marks=[pytest.mark.needs("cc"), pytest.mark.slow]),
    pytest.param("fortran", marks=[pytest.mark.needs("cc", "gfortran"), pytest.mark.slow]),
]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_numbers_at_the_same_indices(tmp_path, language):
    program = built(tmp_path, language)
    host = Hosted([program, "{case}"], calls=[TURN, MANY], outputs=OUTPUTS)
    shown = {}

    def many(f, n, s):
        shown.update(f=f, n=n, s=s)
        return f[:, :2, None] * torch.tensor([1.0, 10.0]), 2 * s

    result = host.run([0, 4], dtype=torch.float64, turn=lambda a: a.transpose(1, 2) + 0.5, many=many)
    a = np.array([0, 4])[:, None, None] + np.arange(3)[:, None] + 10 * np.arange(2)
    assert np.array_equal(result.turn.a[:, 0], a)
    assert np.array_equal(result.outputs["b"], a.transpose(0, 2, 1) + 0.5)
    assert shown["f"].tolist() == 2 * [[1.5, 2.5, 3.5]] and shown["f"].dtype == torch.float32
    assert shown["n"].tolist() == [7, 7] and shown["s"].tolist() == [0.25, 4.25]
    assert result.outputs["g"].tolist() == 2 * [[[1.5, 15.0], [2.5, 25.0]]]
    assert result.outputs["t"].tolist() == [0.5, 8.5]
    alone = subprocess.run([program, "0"], capture_output=True, text=True, timeout=20, check=True)
    assert alone.stdout.strip() == "nobody"


@pytest.mark.needs("cc")
def test_a_wrong_shape_is_a_sentence_on_both_sides(tmp_path):
    program = built(tmp_path, "c")
    host = Hosted(
        [program, "{case}"],
        calls=[Call("turn", sees=ArraySpec("a", (3, 2)), gives=ArraySpec("b", (6,))), MANY],
    )
    with pytest.raises(
        RowFailedError, match=r"answer b has the shape \(6\), and the program asks for \(2, 3\)"
    ):
        host.run([0], turn=lambda a: a.flatten(1), many=None)
    host = Hosted(
        [program, "{case}"], calls=[Call("turn", sees=ArraySpec("a", (2, 3)), gives=TURN.gives), MANY]
    )
    words = (
        r"expected the shape \(2, 3\), and the program sent \(3, 2\).*blackbox: turn, a: expected the shape"
    )
    with pytest.raises(RowFailedError, match=f"(?s){words}"):
        host.run([0], turn=lambda a: a, many=None)


@pytest.mark.needs("cc")
def test_where_nobody_listens(tmp_path):
    program = built(tmp_path, "c")
    ended = subprocess.run(
        [program, "0"],
        env={**os.environ, "BLACKBOX_HOST": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 70 and "unset it to run without" in ended.stderr


MPI = r"""
#include <mpi.h>
#include <stdlib.h>
#include "bb_host.h"
int main(int argc, char **argv) {
  int rank, size, whole[] = {4, 6}, first[2], dims[] = {2, 6};
  double field[2][6], answer[2][6], sum = 0, all;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  bb_open_part(rank, size);
  first[0] = 2 * rank; first[1] = 0;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 6; j++) field[i][j] = atoi(argv[1]) + 100 * (first[0] + i) + j;
  for (int step = 0; step < 3; step++) {
    bb_put_part("x", BB_DOUBLE, 2, dims, first, whole, field);
    if (!bb_call("closure")) MPI_Abort(MPI_COMM_WORLD, 1);
    bb_get("u", BB_DOUBLE, 2, dims, answer);
    for (int i = 0; i < 2; i++) for (int j = 0; j < 6; j++) field[i][j] += answer[i][j];
  }
  for (int i = 0; i < 2; i++) for (int j = 0; j < 6; j++) sum += field[i][j];
  MPI_Reduce(&sum, &all, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  if (rank == 0) bb_output("sum", BB_DOUBLE, 0, NULL, &all);
  bb_close();
  MPI_Finalize();
}
"""


MPI_FORTRAN = """
program main
  use mpi
  use, intrinsic :: iso_fortran_env, only: real64
  use bb_host
  implicit none
  integer :: rank, size, error, i, j, step, c
  real(real64) :: field(4, 3), answer(4, 3), whole(4, 6), answers(4, 6), total, all
  character(20) :: case, mode
  call MPI_Init(error)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, error)
  call MPI_Comm_size(MPI_COMM_WORLD, size, error)
  call get_command_argument(1, case)
  call get_command_argument(2, mode)
  read (case, *) c
  do j = 1, 3
    do i = 1, 4
      field(i, j) = c + 100 * (i - 1) + (j - 1 + 3 * rank)
    end do
  end do
  if (mode == "parts") then
    if (.not. bb_open_part(rank, size)) call MPI_Abort(MPI_COMM_WORLD, 1, error)
  end if
  do step = 1, 3
    if (mode == "parts") then   ! each process its columns; 1 * field is gone after the line
      call bb_put_part("x", 1 * field, first=[1, 1 + 3 * rank], whole=[4, 6])
      if (.not. bb_call("closure")) call MPI_Abort(MPI_COMM_WORLD, 1, error)
      call bb_get("u", answer)
    else                        ! the first process asks for all
      call MPI_Gather(field, 12, MPI_DOUBLE_PRECISION, whole, 12, MPI_DOUBLE_PRECISION, 0, &
        MPI_COMM_WORLD, error)
      if (rank == 0) then
        if (.not. bb_exchange("closure", whole, answers)) call MPI_Abort(MPI_COMM_WORLD, 1, error)
      end if
      call MPI_Scatter(answers, 12, MPI_DOUBLE_PRECISION, answer, 12, MPI_DOUBLE_PRECISION, 0, &
        MPI_COMM_WORLD, error)
    end if
    field = field + answer
  end do
  total = sum(field)
  call MPI_Reduce(total, all, 1, MPI_DOUBLE_PRECISION, MPI_SUM, 0, MPI_COMM_WORLD, error)
  if (rank == 0) call bb_output("sum", all)
  call bb_close()
  call MPI_Finalize(error)
end program
"""


def on_two_ranks(program, *words):
    """A host of a program on two processes, and its run of two cases against the same steps in NumPy."""
    call = Call("closure", sees=ArraySpec("x", (4, 6)), gives=ArraySpec("u", (4, 6)))
    launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    host = Hosted(
        [*launch, program, "{case}", *words], calls=[call], outputs=[ArraySpec("sum", ())], timeout=60
    )
    result = host.run([0, 5], dtype=torch.float64, closure=lambda x: 0.5 * x.flip(1))
    x = np.array([0, 5])[:, None, None] + 100.0 * np.arange(4)[:, None] + np.arange(6)
    for step in range(3):
        assert np.allclose(result.closure.x[:, step], x)
        x = x + 0.5 * x[:, ::-1]
    assert np.allclose(result.outputs["sum"], x.sum((1, 2)))


PARTS = """
rank = 1 if os.fork() == 0 else 0  # as under MPI: each opens its own line
bb_host.is_open(rank, 2)
field = [[case + 100 * i + j + 3 * rank for j in range(3)] for i in range(4)]
for step in range(3):
    flat = array.array("d", sum(field, []))
    part = bb_host.Part(memoryview(flat).cast("B").cast("d", [4, 3]), first=(0, 3 * rank), whole=(4, 6))
    answers = bb_host.call("closure", x=part, step=array.array("i", [step]))
    assert answers["scale"][0] == 2.0 * step  # not of the whole's dimensions: whole to each
    field = [[field[i][j] + answers["u"][3 * i + j] for j in range(3)] for i in range(4)]
if rank == 0:
    bb_host.output("first", doubles(field[3][2]))
bb_host.close()
if rank == 0:
    os.wait()
"""


def test_each_process_of_a_python_program_asks_with_its_part(tmp_path):
    call = Call(
        "closure",
        sees=[ArraySpec("x", (4, 6)), ArraySpec("step", (1,), "int32")],
        gives=[ArraySpec("u", (4, 6)), ArraySpec("scale", (1,))],
    )
    host = hosted(tmp_path, PARTS, [call], outputs=[ArraySpec("first", (1,))])
    result = host.run(
        [0, 5], dtype=torch.float64, closure=lambda x, step: (0.5 * x.flip(1) + x.cos(), 2.0 * step.double())
    )
    x = np.array([0, 5])[:, None, None] + 100.0 * np.arange(4)[:, None] + np.arange(6)
    for step in range(3):
        assert np.allclose(result.closure.x[:, step], x, rtol=1e-14)
        x = x + 0.5 * x[:, ::-1] + np.cos(x)
    assert np.allclose(result.outputs["first"][:, 0], x[:, 3, 2], rtol=1e-14)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("bb_host.Part(doubles(1, 2, 3), first=(0, 0), whole=(4, 6))", "a number for each of 1 dimensions"),
        ("bb_host.Part(doubles(1, 2, 3), first=(0,), whole=(4,))", "leave 1 numbers of 4 out"),
    ],
)
def test_a_part_that_does_not_fit_is_said(tmp_path, part, words):
    call = Call("closure", sees=ArraySpec("x", (4,)), gives=ArraySpec("u", (4,)))
    host = hosted(tmp_path, f"bb_host.exchange('closure', {part})", [call])
    with pytest.raises(RowFailedError, match=words):
        host.run([0], closure=lambda x: x)


@pytest.mark.parametrize(
    ("opens", "words"),
    [
        (
            "",
            r"call themselves 0 of 1, 0 of 1: let one of them ask, or let each call bb_open_part\(rank, size",
        ),
        ("bb_host.is_open(0, 2)", "call themselves 0 of 2, 0 of 2"),
        ("bb_host.is_open(rank, 1 + rank)", "call themselves . of ., . of .: let one"),
        ("bb_host.is_open(rank, 3)", "for 1 s from 1 of its 3 processes, such as 2, and was killed"),
    ],
)
def test_processes_that_miscount_themselves_are_told_so(tmp_path, opens, words):
    text = f"""
    rank = int(not os.fork())
    {opens}
    for _ in range(2):
        bb_host.exchange("closure", doubles(1.0, 2.0))
    if rank == 0:
        os.wait()
    """
    with pytest.raises(RowFailedError, match=words):
        hosted(tmp_path, text, timeout=1).run([0], closure=lambda x: x)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"bb_host.output('{40 * 'n'}', doubles(1))", "a name of at most 39 bytes, got: nnn"),
        (f"bb_host.call('closure', {40 * 'n'}=doubles(1))", "a name of at most 39 bytes, got: nnn"),
        (
            "bb_host.call('closure', **{f'n{i}': doubles(i) for i in range(33)})",
            "at most 32 arrays in a call",
        ),
    ],
)
def test_names_and_arrays_that_no_message_has_room_for_end_a_python_program_too(tmp_path, line, words):
    call = Call("closure", sees=ArraySpec("x", (4,)), gives=ArraySpec("u", (4,)))
    with pytest.raises(RowFailedError, match=words):
        hosted(tmp_path, line, [call]).run([0], closure=lambda x: x)


@pytest.mark.slow
@pytest.mark.needs("mpi", "cc")
def test_each_process_asks_with_its_part(tmp_path):
    (tmp_path / "main.c").write_text(MPI)
    run("mpicc", f"-I{CLIENT}", "main.c", CLIENT / "bb_host.c", "-o", "main", cwd=tmp_path)
    on_two_ranks(tmp_path / "main")


@pytest.mark.slow
@pytest.mark.needs("mpi", "mpifort", "cc", "gfortran")
@pytest.mark.parametrize("mode", ["parts", "first"])
def test_processes_in_fortran_ask_each_with_its_part_or_by_the_first(tmp_path, mode):
    (tmp_path / "main.f90").write_text(MPI_FORTRAN)
    run("cc", "-c", CLIENT / "bb_host.c", cwd=tmp_path)
    run("mpifort", CLIENT / "bb_host.f90", "main.f90", "bb_host.o", "-o", "main", cwd=tmp_path)
    on_two_ranks(tmp_path / "main", mode)
