import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters.command.templates import Template
from blackbox.errors import ConfigurationError

SPECS = [ArraySpec("speed", ()), ArraySpec("wing", (2, 3)), ArraySpec("steps", (), "int64")]
ARRAYS = {"speed": np.array(0.1), "wing": np.arange(6.0).reshape(2, 3) / 3, "steps": np.array(7)}


def template(text, specs=SPECS):
    return Template("here", text, specs)


@pytest.mark.parametrize(
    "text, filled",
    [
        ("u = {speed};", "u = 0.1;"),
        ("{steps} {steps:03d}", "7 007"),
        ("{speed:.3e}", "1.000e-01"),
        ("{wing[1,2]} {wing[ 0, 1 ]:.2f}", "1.6666666666666667 0.33"),
        ('{"u": {speed}, "other": {velocity}, "list": {}}', '{"u": 0.1, "other": {velocity}, "list": {}}'),
        ("FoamFile\n{\n  U {speed};\n}", "FoamFile\n{\n  U 0.1;\n}"),
        # neither attributes nor conversions, which str.format would look up
        ("{speed.__class__} {speed!r} {0} {speed[0].x}", "{speed.__class__} {speed!r} {0} {speed[0].x}"),
    ],
)
def test_known_names_are_filled_in_and_all_other_braces_stay(text, filled):
    assert template(text).fill(ARRAYS) == filled


def test_a_number_is_written_with_all_its_digits():
    values = np.random.default_rng(0).normal(size=(2, 3)) * 10.0 ** np.arange(-150, 150, 50).reshape(2, 3)
    text = template("{wing}").fill({"wing": values})
    np.testing.assert_array_equal(np.array(text.split(), float).reshape(2, 3), values)


def test_what_is_filled_in_is_not_looked_at_again():
    specs = [ArraySpec("a", ()), ArraySpec("b", ())]
    assert template("{a}{b}", specs).fill({"a": np.array(1.0), "b": np.array(-2.0)}) == "1.0-2.0"


@pytest.mark.parametrize(
    "text, found",
    [
        ("speed: {speed}", 0.35),
        ("speed:\n {speed}", 0.35),
        ("step {steps}, speed: {speed}", 0.35),
    ],
)
def test_numbers_are_read_where_the_text_looks_like_the_template_the_last_time(text, found):
    printed = "log\nstep 1, speed: 0.2 m/s\nstep  2,  speed:   3.5D-1 m/s\nend 9"
    arrays = template(text).find(printed)
    assert arrays["speed"] == found
    assert "steps" not in arrays or arrays["steps"] == 2


def test_arrays_are_read_whole_or_number_by_number():
    specs = [ArraySpec("x", (3,)), ArraySpec("n", (2,), "int64")]
    arrays = template("x = [{x}]\nn = {n[1]} and {n[0]}\n", specs).find("x = [1, -2.5e3,+.5]\r\nn = 4 and 3")
    np.testing.assert_array_equal(arrays["x"], [1, -2500, 0.5])
    np.testing.assert_array_equal(arrays["n"], [3, 4])


VECTOR = [ArraySpec("y", (3,)), ArraySpec("z", ())]


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("{y}", "1 2 3 4"),
        ("y: {y}", "y: 1, 2, 3, 4"),
        ("{y}", "1 2 3\n4 5 6\n1 2 3 4 5 6"),  # as many as would be read twice
        ("{y}\n{z}", "1 2 3 4\n5\n"),
        ("y\n{y}", "log\ny\n1 2\n3 4\n"),
    ],
)
def test_numbers_that_an_array_has_no_place_for_are_not_dropped(text, printed):
    with pytest.raises(ValueError, match=r"expected 3 numbers for \{y\}.* but more (follow|come)"):
        template(text, VECTOR).find(printed)


@pytest.mark.parametrize(
    ("text", "printed", "last"),
    [
        ("{y}", "1 2 3\n4 5 6\n", 6),  # a log; the last time counts
        ("{y}", "1 2 3\r\n7 8", 3),
        ("{y} {z}", "1 2 3 4", 3),
        ("y: {y}", "y: 1 2 3 m/s 4", 3),
        ("({y})", "(1 2 3) 4", 3),
    ],
)
def test_numbers_that_are_not_of_an_array_do_not_disturb_it(text, printed, last):
    assert template(text, VECTOR).find(printed)["y"][-1] == last


@pytest.mark.parametrize("word", ["nan", "NaN", "-inf", "Infinity"])
def test_what_is_not_finite_is_read_as_such(word):
    assert not np.isfinite(template("speed: {speed}").find(f"speed: {word}")["speed"])


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (" \n", "The text is empty: does the program write to another file?"),
        ("v1\n\nspeed  3 m/s", "There is no 'speed:' in it: the text begins with 'v1 speed 3 m/s'."),
        ("speed: none m/s", "Its words are there, but not in this order"),
        ("m/s speed: 3", "Its words are there, but not in this order"),
        ("speed: 3 " + 99 * "so ", "There is no 'm/s' in it: the text begins with 'speed: 3 so so"),
    ],
)
def test_text_that_does_not_look_like_it_is_an_error_which_says_what_there_is(printed, words):
    with pytest.raises(ValueError, match="here: expected text like the template") as told:
        template("speed: {speed} m/s\n").find(printed)
    assert words in str(told.value) and len(str(told.value)) < 250


def test_special_signs_of_patterns_are_plain_text():
    assert template("(a.b)* [+] {speed}").find("(a.b)* [+] 2")["speed"] == 2
    with pytest.raises(ValueError, match="found none"):
        template("a.b {speed}").find("axb 2")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{wing[2,0]}", ["wing", "(2, 3)", "{wing[2,0]}"]),
        ("{wing[1]}", ["an index for each axis"]),
        ("{speed[0]}", ["an index for each axis"]),
        ("{speed:d}", ["{speed:d}"]),
        ("{speed:,,}", ["{speed:,,}"]),
    ],
)
def test_wrong_placeholders_are_refused_at_once(text, words):
    with pytest.raises(ConfigurationError) as caught:
        template(text)
    for word in ["here", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["{wing[0,0]}", "{speed} {speed}", "{wing} {wing[0,0]}"])
def test_a_template_to_read_by_names_each_number_once(text):
    with pytest.raises(ConfigurationError, match="each of its numbers once"):
        template(text).check_complete()


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize(
    "word", ["279,936.5", "280kJ", "2.8e", "0x1F", "2,8E5", "1.2.3", "279'936", "1_000", "3+4i", "*****"]
)
def test_what_begins_like_a_number_and_is_none_is_refused_with_its_text(word, end):
    printed = f"n = 1\nspeed = 5\nlog\nn = 2\nspeed = {word}\n"  # not the speed before, either
    with pytest.raises(ValueError, match=r"expected a number for \{speed\}, got") as told:
        template(f"n = {{steps}}\nspeed = {{speed}}{end}").find(printed)
    assert repr(word) in str(told.value)


def test_a_number_that_words_of_the_template_follow_is_read_whole():
    with pytest.raises(ValueError, match="got '1,234'"):
        template("u={speed},n={steps}").find("u=1,234,n=3")
    assert template("u={speed}kJ").find("u=280kJ")["speed"] == 280


@pytest.mark.parametrize("word", ["-1.#IND", "1.#QNAN", "nan(ind)", "NaN", "-nan"])
def test_not_a_number_is_read_as_compilers_write_it(word):
    assert np.isnan(template("speed: {speed}").find(f"speed: {word}")["speed"])


@pytest.mark.parametrize(
    ("text", "printed", "speed"),
    [
        ("speed = {speed}", "speed = 3 m/s\n", 3),  # units
        ("speed = {speed}", "speed = 3, steps = 5\n", 3),
        ('"speed": {speed}', '{"steps": 1, "speed": 3}', 3),
        ("speed = {speed}\n", "speed = 3 \r\n9", 3),
        ("speed = {speed}\n", "speed = 3", 3),
        # in mid-line behind a number or a sign, not behind a word nor within one
        ("speed = {speed}", "speed = 3\nmax speed = 9\n", 3),
        ("speed = {speed}", "speed = 3\nmax_speed = 9\n", 3),
        ("speed = {speed}", "[INFO] speed = 3", 3),
        ("speed = {speed}", "iteration 5 speed = 3", 3),
        ("\nspeed = {speed}", "speed = 3\n[max] speed = 9\n", 3),
        ("{speed}", "log\n3\nin 9 s\n", 3),
        ("= {speed}", "speed = 3", 3),
    ],
)
def test_where_a_template_begins_and_its_last_number_ends(text, printed, speed):
    assert template(text).find(printed)["speed"] == speed


@pytest.mark.parametrize(
    ("text", "printed", "words"),
    [
        ("speed = {speed}\n", "speed = 3 kJ\n", "expected the line to end where the template does, got 'kJ'"),
        ("speed = {speed}", "speed = 1e5 1e6\n", "more follow on the same line: 1e6"),
        ("{speed}", "1 2\n", "more come before on the same line"),
        ("speed = {speed}", "max speed = 3\n", "in mid-line only, in 'max speed = 3'"),
    ],
)
def test_what_the_template_has_no_place_for_is_refused(text, printed, words):
    with pytest.raises(ValueError, match=words):
        template(text).find(printed)


@pytest.mark.slow
def test_a_line_of_many_matches_is_read_once_through():
    """Minutes, and the end of this test by its limit, if each match looked at all of its line."""
    history = ", ".join(f"max speed = {step}.5" for step in range(40_000))
    read = template("speed = {speed}")
    assert read.find(f"{history}, speed = 3.25\n")["speed"] == 3.25  # behind a comma, not behind a word
    with pytest.raises(ValueError, match="in mid-line only"):
        read.find(history)
