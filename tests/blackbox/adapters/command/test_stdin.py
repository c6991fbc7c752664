"""Programs that read standard input: a text of each row, and the end of file behind it."""

import os
import sys

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters import CommandLine
from blackbox.errors import ConfigurationError, RowFailedError

X = [ArraySpec("x", (2,)), ArraySpec("n", (), "int64")]
Y = [ArraySpec("y", ())]
# asks, as XFOIL does, and ends where it is told to
ASKS = """
import sys
total = 0.0
while True:
    print("next? ", end="")
    command, *numbers = input().split()
    if command == "QUIT":
        break
    total += sum(map(float, numbers))
    print("total =", total)
"""
ROWS = np.array([[1.0, 2.5], [3.0, -1.25]]), np.array([2, 5])


def box(stdin, code=ASKS, inputs=X, **settings):
    return CommandLine(
        [sys.executable, "-c", code],
        inputs,
        Y,
        stdin=stdin,
        output_templates={"stdout.txt": "total = {y}"},
        **settings,
    )


def test_a_program_is_told_what_the_text_says_of_each_row():
    asked = box("ADD {x[0]} {x[1]:.4f}\nADD {n}\nQUIT\n")
    np.testing.assert_array_equal(asked(*ROWS), ROWS[0].sum(axis=1) + ROWS[1])


def test_the_text_may_be_a_file_which_the_answers_depend_on(tmp_path):
    path = tmp_path / "commands"
    path.write_text("ADD {x}\nADD {n}\nQUIT\n")
    asked = box(path)
    path.write_text("QUIT\n")  # read when the box was made
    np.testing.assert_array_equal(asked(*ROWS), ROWS[0].sum(axis=1) + ROWS[1])
    assert path in asked.files
    assert asked.identity == box("ADD {x}\nADD {n}\nQUIT\n").identity
    assert asked.identity != box("ADD {x} {n}\nQUIT").identity  # a cache's key


def test_a_text_without_placeholders_is_the_same_for_all_rows():
    code = "import sys; print('total =', float(open('x').read().split()[0]) * float(sys.stdin.read()))"
    asked = box("2\n", code, input_templates={"x": "{x} {n}"})
    np.testing.assert_array_equal(asked(*ROWS), 2 * ROWS[0][:, 0])


def test_blocks_of_rows_have_one_text(tmp_path):
    code = "import sys, numpy as np; np.save('y.npy', float(input()) * np.load('x.npy')[:, 0])"
    asked = CommandLine(
        [sys.executable, "-c", code],
        X[:1],
        Y,
        stdin="3\n",
        input_files={"x": "x.npy"},
        output_files={"y": "y.npy"},
        vectorized=True,
    )
    np.testing.assert_array_equal(asked(ROWS[0]), 3 * ROWS[0][:, 0])
    with pytest.raises(ConfigurationError, match="stdin: expected no placeholder with vectorized=True"):
        CommandLine(
            ["cat"],
            X[:1],
            Y,
            stdin="{x}",
            input_files={"x": "x.npy"},
            output_files={"y": "y.npy"},
            vectorized=True,
        )


def test_a_text_that_ends_too_early_is_the_end_of_file_and_fails_the_row():
    with pytest.raises(RowFailedError, match="EOFError"):
        box("ADD {x} {n}\n")(*ROWS)
    with pytest.raises(RowFailedError, match="EOFError"):  # without a text
        box(None, input_templates={"x": "{x} {n}"})(*ROWS)


def test_a_long_text_that_nobody_reads_blocks_nothing():
    asked = box("{x} {n}\n" + "x" * 2_000_000, "print('total = 4')")
    np.testing.assert_array_equal(asked(*ROWS), [4, 4])


@pytest.mark.parametrize("name", ["stdin.txt", "./stdin.txt", "stdin"])
@pytest.mark.parametrize("kind", ["input_templates", "input_files", "copies"])
def test_a_file_with_the_name_of_standard_input_is_not_taken_for_it(tmp_path, kind, name):
    (tmp_path / "a").write_text("QUIT")
    settings = {
        "input_templates": {"input_templates": {name: "{x} {n}"}},
        "input_files": {"input_files": {"x": (name, np.save)}, "input_templates": {"n": "{n}"}},
        "copies": {"copies": {name: tmp_path / "a"}, "input_templates": {"n": "{n} {x}"}},
    }[kind]
    with pytest.raises(ConfigurationError, match="standard input in stdin="):
        box(None, **settings)


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        ("ADD {x} {m}", "input 'n': expected some way to the program, got none. There is {m}"),
        ("ADD {x} {n[0]}", "stdin: expected a placeholder for 'n'"),
        (os.path.join, "stdin: expected a path that exists"),
    ],
)
def test_a_text_that_cannot_be_is_refused(stdin, words):
    with pytest.raises(ConfigurationError) as caught:
        box(stdin)
    assert words in str(caught.value)


def test_an_output_is_not_read_from_what_the_program_was_told():
    with pytest.raises(ConfigurationError, match="other files for inputs than for outputs"):
        CommandLine(["cat"], X, Y, stdin="y {x} {n}", output_templates={"stdin.txt": "y {y}"})


def test_the_folder_of_a_failed_run_has_the_text(tmp_path):
    with pytest.raises(RowFailedError):
        box("ADD {x} {n}\n", scratch=tmp_path, keep_failed=True)(ROWS[0][:1], ROWS[1][:1])
    (folder,) = tmp_path.iterdir()
    assert (folder / "stdin.txt").read_text() == "ADD 1.0 2.5 2\n"
