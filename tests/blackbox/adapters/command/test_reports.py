"""The last report of a text counts, also without a number; lists, units and exponents are read whole."""

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters import CommandLine
from blackbox.adapters.command.templates import Template

SPECS = [ArraySpec("cd", ()), ArraySpec("n", (), "int64"), ArraySpec("y", (3,))]
NO_NUMBER = (
    "diverged",
    "N/A",
    "--",
    "-",
    "",
    " ",
    "None",
    "null",
    "not converged",
    "did not converge after 3 iterations",
    "#VALUE!",
    "******",
    "nan",
    "inf",
    "np.float64(0.35)",
    "[0.35]",
    "(0.35)",
    "'0.35'",
    "<0.35>",
    "$0.35",
    "~0.35",
    ">0.35",
)


# what numbers may be followed by that are more of them; 4 stands for the next
GOES_ON = (
    "4\n",
    "\n4 5\n",
    "\r\n \r\n\t\r\n4 5\r\n",
    "\f4 5\n",
    "# next block\n4 5\n",
    "! next block\n\n% of two\n4 5\n",
    "***** *****\n",
    "4 5 oops\n",
    "nan nan\n",
    "2*7.0\n",
    "1.2-103\n",
    "| 4 | 5 |\n",
    "[4, 5]\n",
    "-----\n4 5\n",
    "N/A 5\n",
    "-4.0-5.0\n",
)


def read(template, text, name="cd"):
    return Template("here", template, SPECS).find(text)[name]


@pytest.mark.quick_cases(102)
@pytest.mark.parametrize("last", NO_NUMBER)
@pytest.mark.parametrize("end", ["\n", "", "\ndone in 3 s\n", "\n5 iterations\n"])
@pytest.mark.parametrize(
    ("template", "words"),
    [("Cd = {cd}", "Cd = "), ("Cd={cd}", "Cd="), ("drag {cd}", "drag "), ("it {n}: Cd {cd}", "it 2: Cd ")],
)
def test_a_last_report_without_a_number_fails_the_row(template, words, last, end):
    if words == "drag " and len(last.split()) > 1:
        return  # the rest of a sentence, as in "drag is a force"
    first = words.replace("it 2", "it 1") + "0.31\n"
    try:
        assert not np.isfinite(read(template, f"{first}{words}{last}{end}"))
    except ValueError:
        pass
    assert read(template, f"{words}{last}\n{first}{end}") == 0.31  # where it comes before, it has been mended


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Cd = {cd}\ndone", "Cd = 0.31\ndone\nCd = 0.35\n"),  # killed before the end of its second
        ("run {n}\nCd = {cd}", "run 1\nCd = 0.31\nrun 2\nSegmentation fault\n"),
        ("== run ==\nCd = {cd}", "== run ==\nCd = 0.31\n== run ==\nabort\n"),
        ("Result\n\nCd = {cd}", "Result\n\nCd = 0.31\n\nResult\n\nnone\n"),
        ("run {n}\nCd = {cd}", "run 1\nCd = 0.31\nCd = diverged\n"),
        ('"cd": {cd}', '{"cd": 0.31}\n{"cd": null}\n'),
        ('"cd": {cd}', '{"cd": 0.31}\n{"cd":null}\n'),
        ("Cd={cd}", "Cd=0.31\nCd = N/A\n"),
        ("-> {cd}", "-> 0.31\n-> failed\n"),
        ("{cd}", "0.31\nN/A\n"),
        ("Cd = {cd}", "Cd = 0.31\nCd\n=\n"),
        ("{n},{cd}", ",,,\n"),
        ("{n} it {cd}", "it\n"),
        ("Cd = {cd} Cl = {n}", "Cd = 0.31 Cl = 2\nCd = 0.35 Cl = none\n"),
        ("{n} it, Cd = {cd}", "1 it, Cd = 0.31\n2 it, Cd = none\n"),
        ("{cd} m/s", "0.31 m/s\nN/A m/s\n"),
        ("{n} {cd}", "1 0.31\n2 diverged\n"),
        ("{n},{cd}", "1,0.31\n2,--\n"),
        ("[{y}]", "[1 2 3]\n[1 null 3]\n"),
        ("y = {y}", "y = 1 2 3\ny = 1 bad 3\n"),
        ("y = {y}", "y = 1 2 3\ny = 1 2\n"),
        ("y = {y}", "y = 1 2 3\ny = 1 2\n7 iterations\n"),
        ("y = {y}", "y = 1 2\n7 iterations\n"),
        ("Cd = {cd}", "Cd = \n7 iterations\n"),
    ],
)
def test_no_older_report_and_no_number_of_another_line_is_taken(template, text):
    with pytest.raises(ValueError, match=r"expected (numbers|text like the template|3 numbers)"):
        read(template, text)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Cd = {cd}", "Cd = diverged\nCd = 0.31\n"),
        ("Cd = {cd}", "Cd = 0.31\nmax Cd = none\n"),  # another quantity
        ("Cd = {cd}", "Cd = 0.31\nCd_max = none\nACd = none\n"),
        ("drag {cd}", "drag 0.31\ndrag is a force\ndragging on\n"),
        ("drag {cd}", "drag 0.31 in the end\n"),
        ("({cd})", "(0.31)\n(in newtons)\n"),
        ("{cd} m/s", "0.31 m/s\nall speeds in m/s\n"),
        ("{n} {cd}", "1 0.31\n2 iterations\n"),
        ("{n} {cd}", "1 0.31\n-- done --\n"),
        ("[{cd}]", "[0.31]\n[info] done\n"),
        ('"cd": {cd}', '{"cd": 0.31, "cl": null, "cd_std": null}'),
        ("run {n}\nCd = {cd}", "run 1\nCd = 0.31\nfinal Cd = 0.31\nCd = 0.31\n"),
        ("== run ==\nCd = {cd}", "== run ==\nCd = 0.31\n== runs == of today\n"),
        ("----\nCd = {cd}", "----\nCd = 0.31\n----\ndone\n"),
        ("{cd}", "0.31\n-----\ndone\n"),
        ("Cd = {cd}", "Cd =0.31\n"),
        ("Cd={cd}", "Cd=  0.31\n"),
        ("Cd = {cd}", "Cd =  0.5\r\nCd =  0.31\r\n"),
        ("Cd =\n{cd}", "Cd =\n\n  0.31\n"),
    ],
)
def test_what_is_no_later_report_disturbs_nothing(template, text):
    assert read(template, text) == 0.31


def test_a_sign_may_stand_where_a_space_would():
    assert read("Cd = {cd}", "Cd = 0.31\nCd =-0.35\n") == -0.35  # 0.31 before: as Fortran fills its columns


@pytest.mark.parametrize("end", ["", "done\n"])
@pytest.mark.parametrize(("last", "value"), [("diverged", np.nan), ("", np.nan), ("0.35", 0.35)])
def test_a_box_fails_the_row_whose_last_report_has_no_number(last, value, end):
    box = CommandLine(
        ["printf", f"it {{x}}\\nCd = 0.31\\nCd = {last}\\n{end}"],
        [ArraySpec("x", ())],
        [ArraySpec("cd", ())],
        output_templates={"stdout.txt": "Cd = {cd}"},
        failures="keep",
    )
    np.testing.assert_array_equal(box(np.array([1.0])), [value])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("y = [{y}", "y = [1, 2, 3, 4]\n"),
        ("y = [{y}", "y = [1, 2, 3,\n 4]\n"),
        ("y = [{y}", "y = [1. 2. 3. ... 7. 8.]\n"),
        ("y = ({y}", "y = (1 2 3\n"),
        ("y =\n{y}", "y =\n1 2 3\n4 5 6\n"),
        ("y = {y}", "y = 1 2 3\n 4 5 6\n"),
        ("y = {y}", "y = 1, 2, 3,\n4, 5]\n"),
        ("y =\n{y}", "y =\n1\n2\n3\n4\n"),
        ("{y}", "1 2\n3 4\n"),
        *[("y:\n{y}", f"y:\n1\n2\n3\n{more}") for more in GOES_ON],
        *[("y: {y}", f"y: 1 2 3\n{more}") for more in GOES_ON],
        ("y: {y}", "y: 2*1 3*2\n"),
        ("y:\n{y}", "y:\n1 2\n3\nr4 5 6\n"),
        *[("y: {y}", f"y: 1 2 3 {sign}\n 4 5\n") for sign in ("&", "\\", "...", ",", ",\n")],
    ],
)
def test_a_list_longer_than_declared_is_not_cut(template, text):
    with pytest.raises(ValueError, match=r"expected 3 numbers for \{y\}"):
        read(template, text, "y")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("y = [{y}", "y = [1, 2, 3]\n"),
        ("y = [{y}", "y = [1, 2, 3,]\n"),
        ("y = [{y}", "y = [1. 2.\n 3.\n]\n"),
        ("y = {y}", "y = 1 2\n 3\n\nz:\n4 5\n"),
        ("y = {y}", "y = 1 2\n 3\nz = 4\n"),
        ("y =\n{y}", "y =\n1\n2\n3\n\nz = 4\n"),
        ("y = {y}", "y = 1 2 3"),
        ("y = {y}", "y = 1 2 3\nz = 4 5 6\n"),
        ("y = {y}", "y = 1 2 3\n5 iterations\n"),
        ("y = {y}", "y = 1 2\n 3\n\n-- done --\n"),
        ("y = {y}", "y = 1 2\n 3\n * done\n"),
        ("y = {y}", "y = 1 2 3\n\n2026-11-28 12:30:00\n"),
        ("y = {y}", "y = 1 2 3\n\n2026-11-28 12:30:00 done\n"),
        ("# y\n{y}", "# y\n1 2 3\n# z\n4 5 6\n"),
        ("y =\n{y}\n\n4 5", "y =\n1 2 3\n\n4 5\n"),
        ("<y>{y}</y>", "<y>1 2\n3</y>\n4 5"),
    ],
)
def test_a_list_as_long_as_declared_is_read(template, text):
    np.testing.assert_array_equal(read(template, text, "y"), [1, 2, 3])


@pytest.mark.parametrize(
    ("text", "values"), [("y = 2*0.0 1.5\n", [0, 0, 1.5]), ("y = 3*-2.5D-1\n", [-0.25] * 3)]
)
def test_repeat_counts_as_fortran_writes_them_are_numbers(text, values):
    np.testing.assert_array_equal(read("y = {y}", text, "y"), values)
    with pytest.raises(ValueError):
        read("y = {y}", "y = 4*0.0\n", "y")
    with pytest.raises(ValueError):
        read("Cd = {cd}", "Cd = 2*0.5\n")  # two, of which one is declared


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("length = {cd} m", "350 mm"),
        ("length = {cd} m", "350 m/s"),
        ("length = {cd} m", "350 m^2"),
        ("length = {cd}", "350 mm"),
        ("length = {cd}", "350 mm, at the end"),
        ("length = {cd}", "3 kN/m"),
        ("length = {cd}", "3 ms"),
        ("length = {cd}", "3 GB"),
        ("length = {cd}", "2 h"),
        ("length = {cd}", "3 millimeters"),
        ("length = {cd}", "12.345-678"),
        ("length = {cd}", "1.2-678"),
        ("length = {cd}", "12.345-103"),
    ],
)
def test_another_unit_and_a_range_are_refused(template, printed):
    with pytest.raises(ValueError, match=r"expected (a number|text like)"):
        read(template, f"length = {printed}\n")


@pytest.mark.parametrize(
    ("template", "printed", "value"),
    [
        ("length = {cd} m", "0.35 m", 0.35),
        ("length = {cd} m", "0.35 m, at the end", 0.35),
        ("length = {cd} mm", "350 mm", 350),
        ("length = {cd}", "0.35 m", 0.35),
        ("length = {cd}", "3 kg/m3", 3),
        ("length = {cd}", "3 m/s", 3),
        ("length = {cd}", "3 % of most", 3),
        ("length = {cd}", "3 more iterations", 3),
        ("length = {cd}", "3 at cell 7", 3),
        ("length = {cd}", "1.234-103", 1.234e-103),
        ("length = {cd}", "0.1234-103", 0.1234e-103),
        ("length = {cd}", "-.5+100", -0.5e100),
        ("length = {cd}", "0.000-103", 0.0),
        ("length = {cd}", "3 (k-omega)", 3),
        ("length = {cd}", "3 k-epsilon", 3),
        ("length = {cd}", "3 (n = 5)", 3),
        ("length = {cd}", "3 k 0.05 eps 0.1", 3),
        ("length = {cd}", "3 e 0.05", 3),
        ("length = {cd}", "3 p: low", 3),
        ("length = {cd}", "3 (min), 5 (max)", 3),
        ("length = {cd}", "3 (a)", 3),
        ("length = {cd}", "3 Ωm", 3),
        ("length = {cd}", "3 Å", 3),
        ("length = {cd}", "3 ± 0.5", 3),
    ],
)
def test_the_unit_of_the_template_and_other_words_are_read(template, printed, value):
    assert read(template, f"length = {printed}\n") == value


@pytest.mark.parametrize(
    ("printed", "value"), [("3.0", 3), ("3.", 3), ("-3", -3), ("3e2", 300), ("3.0D+00", 3)]
)
def test_a_whole_number_may_be_written_as_a_float(printed, value):
    assert read("n = {n}", f"n = {printed}\n", "n") == value


@pytest.mark.parametrize("printed", ["3.5", "nan", "1e300", "1e-3", "99999999999999999999"])
def test_what_is_no_whole_number_is_refused(printed):
    with pytest.raises(ValueError, match=r"expected an integer for \{n\}"):
        read("n = {n}", f"n = {printed}\n", "n")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("CHD = {cd}", " CHD =  2500.75     CHD =  25.0075\n"),  # cumulative and rate, as MODFLOW prints
        ("CHD = {cd}", "CHD = 1\nCHD = 2 CHD = 3\n"),
        ("BUDGET\nCHD = {cd}", "BUDGET\n CHD = 1   CHD = 2\n"),
        ("CHD = {cd}\ndone", "CHD = 1 CHD = 2\ndone\n"),
        ("n {n}\nCHD = {cd}", "n 1\nCHD = 1 CHD =-2\n"),
        ('"cd": {cd}', '{"cd": 1, "cl": 5, "cd": 2}'),
        ('"cd":{cd}', '[{"cd":1,"t":5},{"cd":2}]'),
        ('"cd":{cd}', '[{"cd":1,"t":5},{"cd":null}]'),
        ("x {n} y {cd}", "x 1 y 2 x 3 y 4\n"),
        ("y = {y}", "y = 1 2 3  y = 4 5 6\n"),
        ("= {cd}", "a = 1, b = 2\n"),
        ("{cd}", "1 | 2\n"),
    ],
)
def test_words_that_stand_twice_on_a_line_do_not_say_which_number_is_meant(template, text):
    with pytest.raises(ValueError, match=r"once on a line|last report|more (come|follow)|text like"):
        Template("here", template, SPECS).find(text)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("CHD = {cd} CHD = {n}", " CHD =  0.31     CHD =  25\n"),
        ("CD = {cd}", " CL = 0.4  CD = 0.31  =>  CDf = 0.1  CDp = 0.2\n"),
        ("Initial residual = {cd}", "Initial residual = 0.31, Final residual = 0.1\n"),
        ("Cd = {cd}", "Cd = 0.31, max Cd = 0.5\n"),
        ("Cd = {cd}", "Cd = 0.2 Cd = 0.3\nCd = 0.31\n"),
        ("{n}: {cd}", "12:30 5: 0.31\n"),
        ("Cd = {cd}", "1 %\rCd = 0.2\rCd = 0.31\n"),  # a line that is written over
    ],
)
def test_other_words_on_the_line_do_not_matter(template, text):
    assert read(template, text) == 0.31


SCALES = ("e 6", "E+06", "x 10^6", "x 1e6", "*1e6", "\u00d7 10^6", "^2", "k", "M", "G,", "n", "µ")
SCALES += (
    "times 10^6",
    "(x 1e6)",
    "[10^6 N]",
    "[kN]",
    "(mm)",
    "(e-3)",
    "hundred",
    "bn",
    "Mill.",
    "M$",
    "k\u20ac",
)
SCALES += ("Mio", "Mio. m", "Mrd", "thousand", "million Pa", "MPa.m")


@pytest.mark.parametrize("scale", SCALES)
def test_a_word_that_scales_a_number_is_refused(scale):
    with pytest.raises(ValueError, match=r"expected (a|1) number"):
        read("Cd = {cd}", f"Cd = 1.000 {scale}\n")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16", "iso-8859-7"])
@pytest.mark.parametrize(("printed", "value"), [("350 \u03bcm", None), ("25 °C", 25), ("2 km", None)])
def test_a_unit_is_read_in_whatever_code_of_characters(tmp_path, encoding, printed, value):
    printed = printed.replace("\u03bc", "\u03bc" if encoding == "iso-8859-7" else "\u00b5")
    (tmp_path / "log").write_bytes(f"log\r\nT = {printed}\r\n".encode(encoding))
    box = CommandLine(
        ["sh", "-c", ": {x}; cp log log.txt"],
        [ArraySpec("x", ())],
        [ArraySpec("t", ())],
        output_templates={"log.txt": "\nT = {t}"},
        copies={"log": tmp_path / "log"},
        failures="keep",
    )
    np.testing.assert_array_equal(box(np.zeros(1)), [np.nan if value is None else value])
