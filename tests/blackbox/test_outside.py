"""Numbers that come from outside, by every way in: as they are, NaN where masked, or refused."""

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.adapters import Call, CommandLine, Hosted, Session, from_callable
from blackbox.adapters.openfoam import read_field, write_field
from blackbox.errors import DtypeError, OutputError, RowFailedError

ANSWER: dict[str, object] = {}  # what the simulator, the reader or the function gives next


class Simulator:
    def reset(self, seed):
        return 0.0

    def step(self, action):
        return 0.0, ANSWER["next"]


def read(path):
    return ANSWER["next"]


def session(spec):
    box = Session(
        Simulator,
        observation=ArraySpec("observation", ()),
        action=ArraySpec("action", ()),
        outputs=[spec],
        steps=2,
        failures="keep",
    )
    observation, history = box.reset(np.array([0]))
    return box(observation, np.array([0.5]), history)[1]


def program(spec):
    box = CommandLine(
        ["sh", "-c", ": > o.nc", "{x}"],
        [ArraySpec("x", ())],
        [spec],
        output_files={"y": ("o.nc", read)},
    )
    return box(np.array([0.5]))


def function(spec):
    return of_function(lambda x: ANSWER["next"], spec)(np.array([0.5]))


def of_function(f, spec):
    return from_callable(f, inputs=[ArraySpec("x", ())], outputs=[spec], failures="keep")


def asked(spec):
    """What a hosted function sends with a call."""
    calls = [Call("ask", sees=spec, gives=ArraySpec("u", ()))]
    host = Hosted(lambda case, host: host.exchange("ask", ANSWER["next"]), calls=calls)
    return host.run([0], dtype=torch.float64, ask=lambda y: torch.zeros(1)).ask.y[:, 0].numpy()


def output(spec):
    """What it leaves at its end."""

    def simulate(case, host):
        host.call("ask", x=0.0)
        host.output("y", ANSWER["next"])

    calls = [Call("ask", sees=ArraySpec("x", ()), gives=ArraySpec("u", ()))]
    host = Hosted(simulate, calls=calls, outputs=[spec])
    return host.run([0], dtype=torch.float64, ask=lambda x: torch.zeros(1)).outputs["y"].numpy()


WAYS = pytest.mark.parametrize("way", [session, program, function, asked, output])
CONVERTING = pytest.mark.parametrize("way", [session, program])  # a box's own function has to give the dtype
REFUSALS = (OutputError, RowFailedError, DtypeError)


def masked(values, fill):
    return np.ma.MaskedArray(np.array(values), mask=[False, True], fill_value=fill)


class Around:
    """As an array of xarray: any other, with names of its axes."""

    dims = ("cell",)

    def __init__(self, data):
        self.data = data

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.data)


class Masked(np.ndarray):
    """As those of astropy, and as a quantity of pint around a masked array: no subclass of NumPy's."""

    mask: object = None


def with_mask(values):
    array = np.array(values).view(Masked)
    array.mask = np.array([False, True])
    return array


class Lazy:
    """As an array of dask."""

    dask = None

    def __init__(self, array):
        self.array = array

    def compute(self):
        return self.array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array)


class Variable:
    """As those of netCDF4: an array that has a mask."""

    def __init__(self, array):
        self.array, self.units = array, "K"

    def __array__(self, dtype=None, copy=None):
        return self.array


@WAYS
@pytest.mark.parametrize(
    "answer",
    [
        masked([1.5, -32767.0], -32767.0),
        masked([1.5, 1e20], 1e20),
        [np.ma.MaskedArray(1.5), np.ma.masked],
        Variable(masked([1.5, 1e20], 1e20)),
        with_mask([1.5, 1e20]),
        Around(with_mask([1.5, 1e20])),
        Lazy(masked([1.5, 1e20], 1e20)),
    ],
    ids=["fill", "default", "list", "variable", "another's", "around", "lazy"],
)
def test_masked_numbers_are_those_of_a_failed_row(way, answer):
    ANSWER["next"] = [answer] if way is function else answer
    if way in (program, asked, output):
        with pytest.raises(RowFailedError):
            way(ArraySpec("y", (2,), "float64"))
    else:
        assert np.isnan(way(ArraySpec("y", (2,), "float64"))).any()


@CONVERTING
def test_a_mask_over_whole_numbers_or_rows_of_a_list_is_not_dropped(way):
    for answer in (masked([150, -32767], -32767), [masked([1.0, 1e20], 1e20), masked([2.0, 3.0], 1e20)]):
        ANSWER["next"] = answer
        spec = ArraySpec("y", np.shape(answer), "float64")
        try:
            assert np.isnan(way(spec)).any()
        except RowFailedError:
            pass
    ANSWER["next"] = masked([150, -32767], -32767)
    with pytest.raises(REFUSALS, match="mask"):
        way(ArraySpec("y", (2,), "int64"))


@CONVERTING
@pytest.mark.parametrize(
    ("answer", "dtype"),
    [
        (1.7, "int64"),
        (np.array(1.7), "int64"),
        (torch.tensor(1.7), "int64"),
        (np.nan, "int64"),
        (np.inf, "int32"),
        (300, "uint8"),
        (-1, "uint8"),
        (np.int64(2**40), "int32"),
        (np.uint64(2**63), "int64"),
        (2.0**63, "int64"),
        (2, "bool"),
        (0.5, "bool"),
        (1 + 2j, "float64"),
        (1 + 0j, "float64"),
        (torch.tensor(1 + 2j), "float64"),
        ("1.5", "float64"),
        (None, "float64"),
        (np.datetime64("2024-01-01"), "float64"),
        (np.timedelta64(3, "s"), "int64"),
        (2**70, "int64"),
    ],
)
def test_what_a_dtype_cannot_hold_is_refused(way, answer, dtype):
    ANSWER["next"] = answer
    with pytest.raises(REFUSALS):
        way(ArraySpec("y", (), dtype))


@CONVERTING
@pytest.mark.parametrize(
    ("answer", "dtype", "value"),
    [
        (3.0, "int64", 3),
        (np.float32(255), "uint8", 255),
        (np.int8(-3), "int32", -3),
        (2**62, "int64", 2**62),
        (True, "int64", 1),
        (True, "float64", 1.0),
        (1.0, "bool", True),
        (np.uint8(0), "bool", False),
        (np.float64(0.1), "float32", np.float32(0.1)),
        (torch.tensor(0.5, dtype=torch.bfloat16), "float64", 0.5),
        (torch.tensor(7, dtype=torch.int16), "float64", 7.0),
        ([[2.5]], "float64", None),
        (np.ma.MaskedArray(2.5), "float64", 2.5),
    ],
)
def test_what_a_dtype_can_hold_is_taken(way, answer, dtype, value):
    ANSWER["next"] = answer
    if value is None:
        with pytest.raises(REFUSALS, match="shape"):
            way(ArraySpec("y", (), dtype))
    else:
        assert way(ArraySpec("y", (), dtype))[0] == value


class Quantity(np.ndarray):
    """As those of astropy and unyt: an array with a unit, which NumPy drops."""

    unit: object = None


class Unit:
    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


def quantity(value, unit):
    array = np.asarray(value).view(Quantity)
    array.unit = Unit(unit)
    return array


@WAYS
def test_a_quantity_is_refused_whose_unit_nobody_knows(way):
    spec = ArraySpec("y", (2,), "float64")
    answers = quantity([350.0, 1.0], "mm"), [quantity(350.0, "mm"), quantity(1.0, "mm")]
    for answer in (*answers, Around(answers[0]), Lazy(answers[0])):
        ANSWER["next"] = [answer] if way is function else answer
        with pytest.raises(REFUSALS, match=r"mm|array of numbers"):
            way(spec)
    ANSWER["next"] = quantity([350.0, 1.0], "")  # a plain ratio
    np.testing.assert_array_equal(way(spec), [[350.0, 1.0]])


def test_an_input_with_a_unit_or_a_mask_is_not_stripped():
    box = from_callable(
        lambda x: x, inputs=[ArraySpec("x", ())], outputs=[ArraySpec("y", ())], failures="keep"
    )
    with pytest.raises(DtypeError, match="some in mm"):
        box(quantity([350.0, 1.0], "mm"))
    np.testing.assert_array_equal(box(masked([1.5, 1e20], 1e20)), [1.5, np.nan])


def test_seeds_and_actions_of_a_session_are_not_rounded():
    box = Session(
        Simulator,
        observation=ArraySpec("observation", ()),
        action=ArraySpec("action", (), "int64"),
        outputs=[ArraySpec("reward", ())],
        steps=2,
    )
    ANSWER["next"] = 1.0
    for seeds in (np.array([1 + 2j]), [1.5]):
        with pytest.raises(DtypeError, match="whole numbers"):
            box.reset(seeds)
    with pytest.raises(DtypeError, match=r"1\.7"):
        box.rollouts([0], np.array([[1.7]]))
    assert len(box.rollouts([0], np.array([[1.0, 2.0]]))[0][0]) == 2


def test_a_field_of_openfoam_takes_real_numbers_alone(tmp_path):
    path = tmp_path / "U"
    path.write_text("internalField uniform 0;\n")
    for values in (np.array([[1 + 2j]]), quantity([[350.0]], "mm")):
        with pytest.raises(TypeError):
            write_field(path, values)
    write_field(path, [[1.5], [2.5]])
    np.testing.assert_array_equal(read_field(path), [[1.5], [2.5]])
