"""Text as programs write it: the column or table that was meant is read, or an error says why not."""

import re

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters.command import files
from blackbox.adapters.command.templates import Template

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


@pytest.mark.parametrize("heading", ["y", "2"])
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("o.txt", "t y\n0,0 1,5\n1,0 2,5\n", "line 2, got '0,0 1,5'"),
        ("o.txt", "t y\n0 1,5\n1 2,5\n", "line 2, got '0 1,5'"),
        ("o.txt", "t y\nnose 1,5\nwing 2,5\n", "line 3, got 'wing 2,5'"),
        ("o.csv", "t y\n0 1.5\n1 2.5\n", "line 2, got '0 1.5'"),
        ("o.csv", "t y\n0 1,5\n1 2,5\n", "line 2, got '0 1,5'"),
        ("o.csv", "0 1,5\n1 2,5\n", "line 1, got '0 1,5'"),  # the second column is no 5
    ],
)
def test_a_column_behind_signs_that_the_name_does_not_mean_is_quoted_with_what_to_do(
    tmp_path, name, text, said, heading
):
    with pytest.raises(ValueError) as caught:
        column(tmp_path, text, heading, name=name)
    assert f"{name}: expected a number in column {heading} of {said}. Commas separate" in str(caught.value)
    assert "rename it, or take (file, function), as where they are decimal." in str(caught.value)


def test_a_title_with_a_comma_is_not_what_is_wrong_with_a_table_that_is_short(tmp_path):
    with pytest.raises(ValueError, match=re.escape("found 1. Line 2, 't y', was taken for headings.")):
        column(tmp_path, "run 1,234 of today\nt y\n0 1.5\n", "y")


def test_a_comment_with_a_comma_and_a_quoted_time_separate_nothing(tmp_path):
    np.testing.assert_array_equal(column(tmp_path, "0 1 # a, b\n1 2 # c, d\n", "2"), [1, 2])
    text = '"12 30",5\n"12 40",6\n'
    np.testing.assert_array_equal(column(tmp_path, text, "2", name="o.csv"), [5, 6])


@pytest.mark.parametrize("text", ["RD\n t  y\n0 1.5\n", "t y\n--- ---\n0 1.5\n"])
def test_more_lines_of_headings_than_one_are_told_their_remedy(tmp_path, text):
    first, second, *_ = text.splitlines()
    with pytest.raises(ValueError) as caught:
        whole(tmp_path, text, (2,))
    assert f"in line 2, got {second.strip()!r}. Line 1, {first!r}, was taken for head" in str(caught.value)
    assert "begin with '#'" in str(caught.value) and "(file:1)" in str(caught.value)
    np.testing.assert_array_equal(whole(tmp_path, text.replace(second, f"#{second}"), (2,)), [0, 1.5])
    np.testing.assert_array_equal(column(tmp_path, text, "2", shape=(1,)), [1.5])


@pytest.mark.parametrize("heading", [None, "2"])
def test_words_behind_a_table_are_told_their_remedy(tmp_path, heading):
    def read(text):
        return whole(tmp_path, text, (4,)) if heading is None else column(tmp_path, text, heading)

    text = "t y\n0 1.5\n1 2\nnormal end\n"
    with pytest.raises(ValueError, match=r"line 4, got 'normal end'\. Among numbers .* begin with '#'"):
        read(text)
    assert read(text.replace("normal", "# normal"))[-1] == 2
    for line in ("***** *****", "1.2.3 x", "nan *****"):
        with pytest.raises(ValueError) as caught:
            read(text.replace("normal end", line))
        assert "'#'" not in str(caught.value)


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
        ("o.csv", "t y\n0 1.234500\n1 2.5\n", ["line 2, got '0 1.234500'. Commas", "in .csv", "rename it"]),
        ("o.csv", "0 1,5\n1 2,5\n", ["line 1, got '0 1,5'. Commas", "rename it", "(file, function)"]),
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


EUROPEAN = "t;p\n0;1,5\n1;1,6\n"


@pytest.mark.parametrize("heading", ["p", "2"])
@pytest.mark.parametrize(
    "text",
    [
        EUROPEAN,
        "sep=;\n" + EUROPEAN,
        "\ufeff" + EUROPEAN,
        EUROPEAN.replace("\n", "\r\n"),
        EUROPEAN.replace(";", "; "),
        EUROPEAN.replace(";", "\t"),
        EUROPEAN.replace(",", "."),
        EUROPEAN.replace(",", ".").replace(";", "\t"),
        't,p\n0,"1,5"\n1,"1,6"\n',
        '"t";"p"\n"0";"1,5"\n"1";"1,6"\n',
        "t;p\n0;15e-1\n1;1,6\n",
        "t;p\n0;1,500\n1;1,6E+00\n",  # three digits, which the other number shows to be decimals
        "t;p;note\n0;1,5;dry, cold\n1;1,6;-\n",
        "t,p,note\n0,1.5,dry; cold\n1,1.6,wet; 2 m\n",  # semicolons in words separate nothing
        "t,p,note\n0,1.5,see 3; 4\n1,1.6,see 4; 5\n",
        "t;p\n0,5;1,5\n1,5;1,6\n",
        "\ufefft,p\n0,1.5\n1,1.6\n",
        "t,p\n0,  1.5\n1,1.6\n",
        "t,p\n0,1.5\n1,01.6\n",
    ],
)
def test_decimal_commas_and_other_separators_are_recognised(tmp_path, text, heading):
    np.testing.assert_array_equal(column(tmp_path, text, heading, name="o.csv"), [1.5, 1.6])


def test_a_table_of_decimal_commas_is_read_whole(tmp_path):
    expected = [[0, 1.5], [1, 1.6]]
    np.testing.assert_array_equal(whole(tmp_path, EUROPEAN, (2, 2), "o.csv"), expected)
    np.testing.assert_array_equal(whole(tmp_path, "0;1,5;1;1,6", (2, 2), "o.csv"), expected)
    with pytest.raises(ValueError, match="rename it"):
        whole(tmp_path, EUROPEAN, (2, 2), "o.txt")


@pytest.mark.parametrize("heading", ["p", "2"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg, -0,0858, 0,1287, 0, 12,18\nb.jpg, -0,1, 0,25, 0, 12,7\n", "some commas may be decimal"),
        ("t,p\n0,1,5\n1,1,6\n", "some commas may be decimal"),  # 2 headings, 3 columns
        ("p\n1,5\n1,6\n", "some commas may be decimal"),
        ("t,p,q\n0,1,-0,5\n", "some commas may be decimal"),
        ("t,p,q,r\n0,1,12,05\n", "some commas may be decimal"),
        ("t;p\n0;1,234\n1;5,678\n", "may stand for decimals or for thousands"),
        ("5,see 3; 4\n6,see 4; 5\n", "can be read in two ways"),
        ("t;p\n0;1,5\n1;1.6\n", "one sign for decimals"),
        ("t;p\n0;1.234,5\n1;2,5\n", "line 2"),
        ('t,p\n0,"1,234"\n', "may stand for decimals or for thousands"),
    ],
)
def test_commas_that_may_be_decimal_are_refused(tmp_path, text, words, heading):
    with pytest.raises(ValueError, match=words):
        column(tmp_path, text, heading, name="o.csv")


@pytest.mark.parametrize(
    "text",
    [
        "t,p\n0,1\n1,2\n",
        "t, p\n0, 1\n1, 2\n",
        "forces of today\n0,1\n1,2\n",
        "0,1,note\n1,2,-\n",
        "  0,  1\n 10,  2\n",
        "t,p,day\n0.0,1,2024\n0.5,2,05\n",
    ],
)
def test_commas_between_numbers_without_a_point_are_read(tmp_path, text):
    np.testing.assert_array_equal(column(tmp_path, text, "2", name="o.csv"), [1, 2])


def test_whole_numbers_have_no_decimals_to_doubt(tmp_path):
    (tmp_path / "o.csv").write_text("t,day\n0,01\n1, 10\n2,100\n")
    (file,) = files.array_files_of("here", {"n": "o.csv:2"}, [ArraySpec("n", (3,), "int64")], read=True)
    np.testing.assert_array_equal(files.read_file(tmp_path, file, ()), [1, 10, 100])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["o.txt", "o.csv"])
def test_marks_at_the_beginning_and_letters_of_other_encodings_disturb_no_number(tmp_path, name, encoding):
    text = "T,\u00b0C\n1,2\n3,4\n".replace(",", "," if name == "o.csv" else " ")
    for content in (text, text.partition("\n")[2]):
        (tmp_path / name).write_bytes(content.encode(encoding))
        np.testing.assert_array_equal(files.read(tmp_path / name, "x", (2, 2), True), [[1, 2], [3, 4]])
        (file,) = files.array_files_of("here", {"T": f"{name}:1"}, [ArraySpec("T", (2,))], read=True)
        np.testing.assert_array_equal(files.read_file(tmp_path, file, ()), [1, 3])
    (tmp_path / name).write_bytes(text.encode(encoding))
    (file,) = files.array_files_of("here", {"T": f"{name}:T"}, [ArraySpec("T", (2,))], read=True)
    np.testing.assert_array_equal(files.read_file(tmp_path, file, ()), [1, 3])  # "time", not "\ufefftime"


@pytest.mark.parametrize("name", ["o.txt", "o.csv"])
def test_repeat_counts_are_written_out(tmp_path, name):
    text = "1.0 3*0.0\n2*2.5 2*-1.0D+00\n".replace(" ", "," if name == "o.csv" else " ")
    np.testing.assert_array_equal(whole(tmp_path, text, (2, 4), name), [[1, 0, 0, 0], [2.5, 2.5, -1, -1]])
    np.testing.assert_array_equal(column(tmp_path, text, "3", name=name), [0, -1])
    np.testing.assert_array_equal(whole(tmp_path, "100000*0.5", (100000,)), np.full(100000, 0.5))
    with pytest.raises(ValueError, match="found more"):
        whole(tmp_path, "900000000*0.0", (4,), name)
    for word in ("2*", "*0.0", "0*1.0", "2*x"):
        with pytest.raises(ValueError):
            whole(tmp_path, f"1 2\n3 {word}\n", (4,))


@pytest.mark.parametrize(
    ("text", "whole_number"), [("3.0", 3), ("3.", 3), ("3e2", 300), ("3.0D+00", 3), ("-3", -3)]
)
def test_whole_numbers_may_have_a_point(tmp_path, text, whole_number):
    assert whole(tmp_path, text, (), floating=False) == whole_number


@pytest.mark.parametrize("text", ["3.5", "nan", "inf", "1e30", "12.345-678", "1.2-678", "0x10"])
def test_what_is_no_whole_number_is_an_error(tmp_path, text):
    with pytest.raises(ValueError):
        whole(tmp_path, text, (), floating=False)


@pytest.mark.parametrize("heading", ["2", "3"])
def test_a_line_of_another_width_whose_words_shift_a_column_is_refused(tmp_path, heading):
    text = "tail 1.0 2.0\nleft wing 1.5 2.5\nnose 3.0 4.0\n"
    with pytest.raises(ValueError, match="line 2, got 'left wing"):
        column(tmp_path, text, heading, shape=(3,))


def test_words_behind_a_column_may_be_any(tmp_path):
    text = "0 1.0 dry\n1 1.5 very wet\n2 3.0\n"
    with pytest.raises(ValueError, match="found 1"):
        column(tmp_path, text, "2", shape=(3,))
    np.testing.assert_array_equal(
        column(tmp_path, text.replace("3.0", "3.0 dry"), "2", shape=(3,)), [1, 1.5, 3]
    )


def test_a_column_in_two_units_is_refused(tmp_path):
    text = "0 350 mm\n1 1.2 m\n"
    with pytest.raises(ValueError, match="in one unit, got mm, m"):
        column(tmp_path, text, "2")
    np.testing.assert_array_equal(
        column(tmp_path, text.replace("m\n", "mm\n").replace("mmm", "mm"), "2"), [350, 1.2]
    )
    np.testing.assert_array_equal(column(tmp_path, text.replace("mm", "x"), "2"), [350, 1.2])


NARROW = "\u00a0\u2007\u2009\u202f"


@pytest.mark.parametrize("space", NARROW)
def test_a_narrow_space_between_thousands_separates_no_numbers(tmp_path, space):
    for text, shape in ((f"1{space}234.5 7\n", (3,)), (f"7 1{space}234.5\n", (2,))):
        with pytest.raises(ValueError, match="expected numbers in line 1"):
            whole(tmp_path, text, shape, name="o.txt")
    text = f"1{space}234.5 7\n2{space}345.5 8\n"
    np.testing.assert_array_equal(column(tmp_path, text, "2"), [7, 8])
    with pytest.raises(ValueError, match="expected a number in column 1"):
        column(tmp_path, text, "1")
    with pytest.raises(ValueError, match="expected 3 numbers"):
        Template("here", "y = {y}", [ArraySpec("y", (3,))]).find(f"y = 1{space}234 5\n")
    np.testing.assert_array_equal(whole(tmp_path, f"{space}1 2{space}\n", (2,), name="o.txt"), [1, 2])


def test_columns_that_run_together_are_not_counted_as_one(tmp_path):
    text = "a b c\n1.0-200.5 3\n2.0-300.5 4\n"
    for place in ("1", "2", "3", "b", "c"):
        with pytest.raises(ValueError, match=r"expected a (number|heading)"):
            column(tmp_path, text, place)
    dates = "2026-11-28 3\n28.11.2026 4\n"
    np.testing.assert_array_equal(column(tmp_path, dates, "2"), [3, 4])


@pytest.mark.parametrize("word", ["#N/A", "#DIV/0!", "#VALUE!", "#NAME?", "#REF!", "#NUM!"])
def test_an_error_of_a_spreadsheet_is_no_comment(tmp_path, word):
    with pytest.raises(ValueError, match="expected numbers in line 2"):
        whole(tmp_path, f"1,2\n3,4,{word}\n", (4,), name="o.csv")
    with pytest.raises(ValueError, match="expected a number in column b"):
        column(tmp_path, f"a,b\n1,2\n3,{word}\n", "b", name="o.csv")


def test_fields_and_numbers_of_any_length_are_numbers_or_refused(tmp_path):
    for text in ("1," + "2" * 200_000 + "x\n", "2*" + "1" * 30_000 + "x,1\n", "1" * 100_000 + "x,2\n"):
        for name in ("o.csv", "o.txt"):
            with pytest.raises(ValueError, match="expected"):
                whole(tmp_path, text, (2,), name=name)
    (tmp_path / "o.txt").write_text("9223372036854775808 1\n")
    with pytest.raises(ValueError, match="expected numbers in line 1"):
        files.read(tmp_path / "o.txt", "y", (2,), False)
    with pytest.raises(ValueError, match="found more"):
        whole(tmp_path, ("999999999*0.5 " * 1_000) + "\n", (2,))
