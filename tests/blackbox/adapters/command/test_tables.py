"""Text as programs write it: the column or table that was meant is read, or an error says why not."""

import re

import numpy as np
import pytest

from blackbox import ArraySpec
from tests.inside import Template
from tests.inside import command_files as files

TABLE = np.array([[0.0, 1, 9], [0, 3, 9]])  # the middle column is wanted
NUMBERS = "0 1 9\n0 3 9\n"


def column(folder, content, heading, shape=(2,), name="o.txt"):
    (folder / name).write_text(content)
    (file,) = files.array_files_of("here", {"T": f"{name}:{heading}"}, [ArraySpec("T", shape)], read=True)
    return files.read_file(folder, file, ())


@pytest.mark.parametrize(
    "above",
    [
        "t T P\n",
        "# t T P\n",
        "#t T P\n",
        "t T P # of the plant\n",
        "# time | T | P\n",
        "| time | T | P |\n",
        "time (s)  T  P (W)\n",
        "time (s)\tT\tP\n",
        "Results for T = 300\nt T P\n",
        "# Results for T = 300\n#\n# t T P\n",
        "12\nt T P\ns K W\n",
        "T T T T\n\nt T P\n",
        "=========\nt T P\n- - -\n",
    ],
)
def test_a_heading_means_the_column_that_it_stands_above(tmp_path, above):
    np.testing.assert_array_equal(column(tmp_path, above + NUMBERS, "T"), TABLE[:, 1])
    np.testing.assert_array_equal(column(tmp_path, above + NUMBERS, "2"), TABLE[:, 1])


@pytest.mark.parametrize(
    ("above", "words"),
    [
        ("time (s) T (K) P (W)\n", ["3 columns", "6 words", "time, (s), T, (K), P, (W)", "column's number"]),
        ("time [s] T P\n", ["3 columns", "4 words"]),
        ("t T\n", ["3 columns", "2 words"]),
        ("t T P note\n", ["4 words"]),
        ("T T P\n", ["one column 'T'", "found 2", "column's number"]),
        ("Results for T\ntime T K P\n", ["3 columns", "4 words"]),
        ("P for T\ntime (s) T (K) P (W)\n", ["6 words"]),
        ("B T P\nT K W\n", ["in one line", "lines 1, 2"]),  # T is tesla, too
        ("t P\n", ["'T'", "found the headings t, P, and 3 columns"]),
        ("", ["found no headings, and 3 columns"]),
        ("Results T 300\n", ["'T'"]),
    ],
)
def test_a_heading_that_leaves_a_doubt_is_refused(tmp_path, above, words):
    with pytest.raises(ValueError) as caught:
        column(tmp_path, above + NUMBERS, "T")
    for word in words:
        assert word in str(caught.value)


def test_what_is_listed_as_headings_are_no_numbers(tmp_path):
    with pytest.raises(ValueError, match=re.escape("found the headings t, P, and 3 columns.")):
        column(tmp_path, "t P\n" + NUMBERS, "T")


def test_commas_in_quoted_headings_separate_no_columns(tmp_path):
    text = '"time, s","T","P"\n0,1,9\n0,3,9\n'
    np.testing.assert_array_equal(column(tmp_path, text, "T", name="o.csv"), TABLE[:, 1])
    with pytest.raises(ValueError, match="4 words"):
        column(tmp_path, text.replace('"', ""), "T", name="o.csv")


@pytest.mark.parametrize("heading", ["T", "2"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t T P\n0 ***** 9\n0 3 9\n", ["line 2", "'0 ***** 9'"]),
        ("t T P\n0 1\n0 3 9\n0 3 9\n", ["line 2", "'0 1'", "The others have 3 columns"]),
        ("t T P\n0 3 9\n0 1", ["line 3", "'0 1'", "The others have 3 columns"]),
        ("t, T, P\n0, 1, 9\n0, 3, 9\n", []),
    ],
)
def test_a_bad_line_of_a_column_is_quoted(tmp_path, text, words, heading):
    with pytest.raises(ValueError) as caught:
        column(tmp_path, text, heading)
    for word in words:
        assert word in str(caught.value)


def test_a_column_of_asterisks_alone_is_no_heading(tmp_path):
    with pytest.raises(ValueError, match=re.escape("line 1, got '*****'")):
        column(tmp_path, "*****\n3\n", "1", shape=(1,))


def whole(folder, content, shape, name="o.txt", floating=True):
    (folder / name).write_text(content)
    return files.read(folder / name, "x", shape, floating)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.0D+03 2", [1000.0, 2]),
        ("1.0d3 -2.5D-1", [1000.0, -0.25]),
        ("1.234-103 2", [1.234e-103, 2]),
        ("-.5+100 2", [-0.5e100, 2]),
        ("1.#QNAN 2", [np.nan, 2]),
        ("2 -1.#IND", [2, np.nan]),  # "#" begins no comment there
        ("-nan(ind) -1.#INF", [np.nan, -np.inf]),
        ("x y\n1.0D+03 2", [1000.0, 2]),
    ],
)
def test_numbers_are_read_as_fortran_and_c_write_them(tmp_path, text, expected):
    np.testing.assert_array_equal(whole(tmp_path, text, (2,)), expected)
    if not text.startswith("x"):
        np.testing.assert_array_equal(column(tmp_path, text, "1", shape=(1,)), expected[:1])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("o.txt", "***** 2\n3 4\n", ["line 1", "'***** 2'"]),
        ("o.txt", "1.2.3 2\n3 4\n", ["line 1", "'1.2.3 2'"]),
        ("o.txt", "1.0x 2\n3 4 5\n", ["found 3", "Line 1, '1.0x 2', was taken for headings"]),
        ("o.txt", "1,2\n3,4\n", ["line 1", ".csv"]),
        ("o.txt", "1, 2\n3, 4\n", ["line 1", ".csv"]),
        ("o.dat", "1;2\n3;4\n", ["line 1", "Only spaces", "(file, function)"]),
        ("o.csv", "1,,2\n3,4,5\n", ["line 1", "'1,,2'"]),
        ("o.txt", "1_0 2\n3 4\n", ["line 1", "'1_0 2'"]),
        ("o.txt", "a\nb\n1 2 3 4", ["line 2", "'b'"]),
    ],
)
def test_a_line_that_is_no_numbers_is_quoted(tmp_path, name, text, words):
    with pytest.raises(ValueError) as caught:
        whole(tmp_path, text, (4,), name)
    for word in words:
        assert word in str(caught.value)


def lines_of(lengths):
    numbers = iter(range(sum(lengths)))
    return "".join(" ".join(str(next(numbers)) for _ in range(length)) + "\n" for length in lengths)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ((12, 6), [6] * 12),
        ((12, 6), [72]),
        ((12, 6), [1] * 72),
        ((12, 6), [12] * 3 + [36]),  # lines of whole rows
        ((6, 12), [5, 5, 2] * 6),  # each row begins a new line, and a line has five numbers at most
        ((6, 12), [5] * 14 + [2]),  # each line has five numbers
        ((4, 12), [6] * 8),
        ((2, 3, 2), [6, 6]),  # a line a row of a block, as `write` writes
        ((2, 3, 2), [2] * 6),
        ((2, 3, 4), [4] * 6),
        ((1, 12), [1] * 12),
        ((12, 1), [12]),
        ((5,), [3, 1, 1]),
        ((), [1]),
    ],
)
def test_lines_that_agree_with_the_shape_or_are_wrapped_are_read(tmp_path, shape, lengths):
    expected = np.arange(sum(lengths)).reshape(shape)
    np.testing.assert_array_equal(whole(tmp_path, lines_of(lengths), shape), expected)
    np.testing.assert_array_equal(whole(tmp_path, lines_of(lengths), shape, floating=False), expected)


@pytest.mark.parametrize(
    ("shape", "lengths", "words"),
    [
        ((6, 12), [6] * 12, ["lines of 12 numbers", "12 lines of 6", "shape (12, 6)"]),
        ((12, 6), [12] * 6, ["6 lines of 12", "shape (6, 12)"]),
        ((4, 2), [4, 4], ["2 lines of 4", "shape (2, 4)"]),
        ((1, 6, 12), [6] * 12, ["12 lines of 6"]),
        ((2, 2), [3, 1], ["lines of 2 numbers", "3, 1", "line 1"]),
        ((2, 3), [2, 4], ["2, 4", "line 2"]),
        ((10, 3), [5] * 6, ["5, 5, 5", "line 1", "(file, function)"]),
    ],
)
def test_lines_that_contradict_the_shape_are_refused(tmp_path, shape, lengths, words):
    with pytest.raises(ValueError) as caught:
        whole(tmp_path, lines_of(lengths), shape)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("{a}", "1.234-103 2", [1.234e-103, 2]),
        ("drag {a[0]} lift {a[1]}", "drag -1.234+103 lift 1.0D+03", [-1.234e103, 1e3]),
        ("from {a[0]}-{a[1]}", "from 1.0-200", [1, 200]),
        ("from {a[0]}-{a[1]}", "from 1-200", [1, 200]),
    ],
)
def test_templates_read_an_exponent_without_its_letter(template, text, expected):
    found = Template("here", template, [ArraySpec("a", (2,))]).find(text)
    np.testing.assert_array_equal(found["a"], expected)
