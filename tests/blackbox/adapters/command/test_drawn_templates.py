"""Templates and texts that are drawn: what was printed is read again, and no text takes long."""

import subprocess
import sys

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters.command.templates import Template

BETWEEN = (" ", "\n", "\nq = ", ", p: ", " m\nT =", "] [", " W; n ", "\n\nResult\n", "|", "\t")
AFTER = ("\ndone", " end of run", "]", "\n--- 8< ---\n")
NOISE = (
    "it 3\n",
    "# log\n",
    "\n",
    "1 2 3 4 5 6 7\n",
    "y 5\n",
    "*** warning ***\n",
    "nan\n",
    "run = \n",
    "y = oops\n",
)
STYLES = ("{:.3f}", "{:.3e}", "{:+.2e}", "{:.0f}", "{:.12g}", "{:8.1f}", "D", "no letter")


def printed(value, style):
    """A number as a program prints it, and what it says then."""
    if style == "no letter":
        text = f"{value:.3e}"[:-4] + "+101"
        return text, float(text[:-4] + "e+101")
    text = (f"{value:.4e}" if style == "D" else style.format(value)).strip()
    return text.replace("e", "D") if style == "D" else text, float(text)


def drawn(seed):
    """A template, the specs of what it names, a text that has it, and the numbers of that."""
    random = np.random.default_rng(seed)
    template = text = str(random.choice(["y = ", "Result:\n", '{"y": [', ""]))
    style, specs, values = str(random.choice(STYLES)), [], {}
    for index in range(random.integers(1, 4)):
        name, count = f"a{index}", int(random.choice([1, 1, 2, 5, 40]))
        specs.append(ArraySpec(name, () if count == 1 else (count,)))
        words, numbers = zip(
            *(printed(value, style) for value in 10 * random.normal(size=count)), strict=True
        )
        values[name] = np.reshape(numbers, specs[-1].shape)
        if count > 1 and random.random() < 0.5:
            template += " ".join(f"{{{name}[{place}]}}" for place in range(count))
            text += "  ".join(words)
        else:
            template += f"{{{name}}}"
            text += str(random.choice([" ", ", ", "\n ", "\r\n"])).join(words)
        between = str(random.choice(BETWEEN))
        template, text = template + between, text + between
    template, text = template.removesuffix(between), text.removesuffix(between)
    after = str(random.choice(AFTER))
    return template + after, specs, text + after, values


@pytest.mark.quick_cases(40)
@pytest.mark.parametrize("seed", range(400))
def test_what_was_printed_is_read_and_what_is_cut_is_refused(seed):
    template, specs, text, values = drawn(seed)
    random = np.random.default_rng(seed)
    noise = "".join(random.choice(NOISE, size=random.integers(0, 4)))
    read = Template("here", template, specs)
    try:
        arrays = read.find(f"{noise}{text}\nbye\n")
    except ValueError as error:  # numbers of the noise stand in front of those that begin the template
        assert template.startswith("{") and "come before" in str(error)
    else:
        for name, value in values.items():
            np.testing.assert_array_equal(arrays[name], value)
    for part in random.uniform(0, 0.99, size=5):  # at least the last sign is missing
        with pytest.raises(ValueError):
            read.find(f"{noise}{text[: int(part * (len(text.rstrip()) - 1))]}\n")


# what hostile texts are made of: the templates' words, what begins like a number, what separates them
SHREDS = (
    "1.5",
    "1.500e+00",
    "1.0D+03",
    "7",
    "-2",
    "nan",
    "nan(",
    "*****",
    "3*0.5",
    "2*",
    "1.0-200",
    "1.234-103",
)
SHREDS += (
    "1,234",
    "0.5x",
    "1.#IND",
    ".5.",
    "e5",
    "--",
    "9" * 50,
    "y = ",
    "\nq = ",
    "\ndone",
    "] [",
    "|",
    '"',
)
WHITE = (" ", "\n", ",", "", "  ", "\r")


def hostile(seed, size):
    """A drawn template, and a text in which it nearly stands again and again."""
    random = np.random.default_rng(seed)
    template, specs, *_ = drawn(seed)
    shreds = [
        *random.choice([*SHREDS, *template.split()], size=random.integers(1, 6)),
        *random.choice(WHITE, size=3),
    ]
    return Template("here", template, specs), "".join(random.choice(shreds, size=size))


def calls(read, text):
    """How many functions are called to look for a template in a text: patterns, lists, Python's own."""
    count = 0

    def saw(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(saw)
    try:
        read.find(text)
    except ValueError:
        pass
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.quick_cases(20)
@pytest.mark.parametrize("seed", range(200))
def test_four_times_the_text_is_four_times_the_work(seed):
    """What a call does is bounded by the patterns, which try no number in two portions: see the next test."""
    counts = []
    for size in (500, 2_000):
        read, text = hostile(seed, size)
        counts.append(calls(read, text))
    assert counts[1] <= 6 * counts[0] + 2_000


LONG = """
import sys
sys.path[:0] = sys.argv[2:]
from tests.blackbox.adapters.command.test_drawn_templates import hostile, numbers_without_their_end
for seed in range(int(sys.argv[1])):
    read, text = hostile(seed, 40_000)
    for text in (text, text.replace("\\n", " "), "".join(text.split())):
        try:
            read.find(text)
        except ValueError:
            pass
numbers_without_their_end(3_000)
"""


def numbers_without_their_end(most):
    """Templates that end in words, numbers in all styles, and a text that lacks the words."""
    for style in STYLES:
        words = [printed(place + 0.5, style)[0] for place in range(most)]
        for template in ("rate {y}\ndone", "{y}\ndone", '{"y": [{y}]}', "rate {y}]", "{z}{y}z"):
            for count in (60, most, most + 1):
                specs = [ArraySpec("y", (count,)), ArraySpec("z", ())]
                for text in (
                    f"rate {' '.join(words)}",
                    f"rate {', '.join(words)}",
                    "{" + f'"y": [{", ".join(words)}',
                ):
                    with pytest.raises(ValueError):
                        Template("here", template, specs).find(text)
        by_index = Template(
            "here", " ".join(f"{{y[{place}]}}" for place in range(60)) + "\ndone", [ArraySpec("y", (60,))]
        )
        with pytest.raises(ValueError):
            by_index.find(" ".join(words[:60]))


def test_numbers_without_their_end_take_no_time():
    """Years, where each number may be taken in two portions: this test would be ended by its limit."""
    numbers_without_their_end(60)


@pytest.mark.slow
def test_no_text_takes_long(request):
    """A second for a text of 150,000 signs; hours if each of them was looked at from each other."""
    command = [sys.executable, "-c", LONG, "30", str(request.config.rootpath)]
    subprocess.run(command, check=True, timeout=400)
