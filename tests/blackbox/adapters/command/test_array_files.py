import os
import pickle
import re
import sys

import h5py
import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters import CommandLine
from blackbox.adapters.command import files
from blackbox.errors import ConfigurationError, RowFailedError

ARRAY = np.random.default_rng(0).normal(size=(2, 3))


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.hdf5", "a.csv", "a.txt", "A.DAT"])
@pytest.mark.parametrize(
    "array", [ARRAY, ARRAY[0], ARRAY[0, 0], np.array([[3, -4]]), ARRAY.astype("float32")]
)
@pytest.mark.parametrize("vectorized", [False, True])
def test_every_format_gives_back_the_same_bits(tmp_path, name, array, vectorized):
    array = np.asarray(array)
    if vectorized and not array.ndim:
        array = array[None]
    files.write(tmp_path / name, "x", array, vectorized)
    floating = array.dtype.kind == "f"
    given = files.read(tmp_path / name, "x", array.shape, floating)
    np.testing.assert_array_equal(given, array)
    assert given.dtype.kind == array.dtype.kind


def test_text_is_what_other_programs_expect(tmp_path):
    path = tmp_path / "a.csv"
    files.write(path, "x", np.array([[1.0, 2], [3, 4]]), False)
    assert path.read_text() == "1,2\n3,4\n"
    files.write(path, "x", np.arange(8).reshape(2, 2, 2), True)  # a line a row
    assert path.read_text() == "0,1,2,3\n4,5,6,7\n"
    files.write(path.with_suffix(".dat"), "x", np.array([1.5, 2]), False)
    assert path.with_suffix(".dat").read_text() == "1.5 2\n"


@pytest.mark.parametrize(
    "text",
    [
        "lift,drag\n1,2\n",
        "\n forces (x, y) at time 0.1\n\n1,2\n",
        "1\n2\n",
        "1,2",
        "# made by hand\n1,\n2  # end\n\n",
        " 1 , 2 \r\n",
    ],
)
def test_numbers_in_other_people_s_csv(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, newline="")
    np.testing.assert_array_equal(files.read(tmp_path / "a.csv", "x", (2,), True), [1, 2])


@pytest.mark.parametrize(
    ("name", "text", "heading"),
    [
        ("a.csv", 'x [m],"q [m3/s]"\n5,1e-5\n10,2e-5\n', "q [m3/s]"),
        ("a.csv", "made by hand\n\nx,q,note\n5,1e-5,dry\n10,2e-5,wet  # last\n\n", "q"),
        ("a.dat", "# x  q\n5 1e-5\n10 2e-5 # end\n", "q"),
        ("a.txt", "   5\t1e-5\n\n  10  2e-5\n", "2"),
        ("a.txt", "position flow\n  5  1e-5\n  10  2e-5\n", "2"),
    ],
)
def test_a_column_of_a_table_is_read_by_its_heading_or_number(tmp_path, name, text, heading):
    (tmp_path / name).write_text(text)
    specs = [ArraySpec("x", (2,)), ArraySpec("q", (2,))]
    places = {"x": f"{name}:1", "q": f"{name}:{heading}"}
    of_x, of_q = files.array_files_of("here", places, specs, read=True)
    np.testing.assert_array_equal(files.read_file(tmp_path, of_x, ()), [5, 10])
    np.testing.assert_array_equal(files.read_file(tmp_path, of_q, ()), [1e-5, 2e-5])
    np.testing.assert_array_equal(files.read_file(tmp_path, of_q, (1,)), [[1e-5, 2e-5]])


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        (
            "x,q\n5,1\n",
            "p",
            "expected a column 'p' in a line above the numbers, found the headings x, q, and 2 columns.",
        ),
        ("x,q\n5,1\n6,\n", "q", "expected a number in column q of line 3, got '6,'"),
        ("5,1\n6\n", "2", "expected a number in column 2 of line 2, got '6'"),
        ("x,q\n5,1\n6,2\n7,3\n", "q", "column q: expected 2 numbers for shape (2,), found 3."),
        ("x,q\n", "q", "found 0"),
    ],
)
def test_a_column_that_is_not_there_or_not_whole_is_said(tmp_path, text, column, words):
    (tmp_path / "a.csv").write_text(text)
    (file,) = files.array_files_of("here", {"q": f"a.csv:{column}"}, [ArraySpec("q", (2,))], read=True)
    with pytest.raises(ValueError, match=re.escape(words)):
        files.read_file(tmp_path, file, ())


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"x": "a.csv:0"}, "a column from 1"),
        ({"x": "a.npy:2"}, "a column from 1"),
        ({"x": "a.csv:1", "q": "a.csv:1"}, "a column (file:2)"),
        ({"x": "a.csv", "q": "a.csv"}, "a column (file:2)"),
    ],
)
def test_columns_that_cannot_be_are_refused(places, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        files.array_files_of("here", places, [ArraySpec("x", (2,)), ArraySpec("q", (2,))], read=True)
    with pytest.raises(ConfigurationError, match="that is read"):
        files.array_files_of("here", {"x": "a.csv:1"}, [ArraySpec("x", (2,))])


def test_several_arrays_share_an_hdf5_file_in_groups(tmp_path):
    path = tmp_path / "a.h5"
    files.write(path, "fields/u", ARRAY, False)
    files.write(path, "p", ARRAY[0], False)
    np.testing.assert_array_equal(files.read(path, "fields/u", (2, 3), True), ARRAY)
    np.testing.assert_array_equal(files.read(path, "p", (3,), True), ARRAY[0])
    with h5py.File(path) as file:
        assert file["fields/u"].dtype == np.float64


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def npy(array, **settings):
    return lambda folder: np.save(folder / "a.npy", array, **settings)


def truncated(folder):
    np.save(folder / "a.npy", np.zeros(2))
    (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-4])


def hdf5(make):
    def write(folder):
        with h5py.File(folder / "a.h5", "w") as file:
            make(file, folder)

    return write


def words_in_hdf5(file, folder):
    file["x"] = ["a", "b"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


WRONG = [  # (what writes a file, its name, words of the message)
    (npy(np.zeros(3)), "a.npy", ["shape (2,)", "got (3,)"]),
    (npy(np.zeros(2, complex)), "a.npy", ["real numbers", "complex128"]),
    (npy(np.zeros(2, [("a", "f8")])), "a.npy", ["real numbers"]),
    (npy(np.array([Bomb(), 1], dtype=object), allow_pickle=True), "a.npy", ["allow_pickle=False"]),
    (lambda folder: (folder / "a.npy").write_bytes(pickle.dumps(Bomb())), "a.npy", ["magic"]),
    (truncated, "a.npy", []),
    (text("a.npy", ""), "a.npy", []),
    (text("a.h5", "no HDF5"), "a.h5", []),
    (hdf5(lambda file, folder: None), "a.h5", ["dataset 'x'", "found none"]),
    (hdf5(lambda file, folder: file.create_group("x")), "a.h5", ["dataset 'x'"]),
    (hdf5(words_in_hdf5), "a.h5", ["real numbers"]),
    (hdf5(lambda file, folder: file.create_dataset("x", (10**15,), "f8", chunks=(1024,))), "a.h5", ["(2,)"]),
    (text("a.csv", "1\n"), "a.csv", ["2 numbers", "found 1"]),
    (text("a.csv", "1,2,3\n"), "a.csv", ["2 numbers", "found more"]),
    (text("a.csv", "a,b\nc,d\n"), "a.csv", ["line 2", "'c,d'"]),
    (text("a.csv", "1,2x\n"), "a.csv", ["found 0"]),
    (text("a.csv", "1,\n__import__('os')\n"), "a.csv", ["line 2"]),
]


@pytest.mark.parametrize("write, name, words", WRONG)
def test_other_content_is_an_error_and_nothing_in_it_is_run(tmp_path, monkeypatch, write, name, words):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        files.read(folder / name, "x", (2,), True)
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "exploded").exists()


RAW = np.array([150, 1025, -32767], "i2")


def netcdf(folder, stored, *, of_netcdf=False, **attributes):
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = stored
        file["x"].attrs.update(attributes)
        if of_netcdf:
            file.attrs["_NCProperties"] = "version=2,netcdf=4.9.2"
    return files.read(folder / "a.h5", "x", stored.shape, True)


@pytest.mark.parametrize(
    ("stored", "attributes", "meant"),
    [
        (
            RAW,
            {"scale_factor": 0.01, "add_offset": 280.0, "_FillValue": np.int16(-32767)},
            [281.5, 290.25, np.nan],
        ),
        (RAW, {"scale_factor": np.array([0.01])}, [1.5, 10.25, -327.67]),
        (RAW, {"add_offset": 280.0}, [430, 1305, -32487]),
        (RAW, {"_FillValue": np.array([-32767], "i2")}, [150, 1025, np.nan]),
        (RAW, {"missing_value": [-32767, 150]}, [np.nan, 1025, np.nan]),
        (RAW, {"valid_min": 0}, [150, 1025, np.nan]),
        (RAW, {"valid_max": 1000}, [150, np.nan, -32767]),
        (RAW, {"valid_range": [0, 1000]}, [150, np.nan, np.nan]),
        (RAW, {"of_netcdf": True}, [150, 1025, np.nan]),
        (RAW, {"units": "K", "long_name": "temperature"}, RAW),
        (np.array([1.5, 1e20], "f4"), {"_FillValue": np.float32(1e20)}, [1.5, np.nan]),
        (np.array([1.5, 1e20], "f4"), {"missing_value": 1e20}, [1.5, np.nan]),  # of another precision
        (np.array([1.5, 9.96921e36], "f4"), {"of_netcdf": True}, [1.5, np.nan]),
        (np.array([1.5, 9.96921e36], "f4"), {}, np.array([1.5, 9.96921e36], "f4")),
        (np.array([1, -56, -1], "i1"), {"_Unsigned": "true", "_FillValue": np.int8(-1)}, [1, 200, np.nan]),
        (np.array([1, -56], "i1"), {"_Unsigned": "false", "of_netcdf": True}, [1, -56]),
        (np.array([1, -56], ">i2"), {"scale_factor": 0.5}, [0.5, -28]),
    ],
)
def test_packed_and_missing_numbers_are_what_they_stand_for(tmp_path, stored, attributes, meant):
    np.testing.assert_allclose(netcdf(tmp_path, stored, **attributes), meant, rtol=1e-15)


def test_an_attribute_that_is_no_number_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'scale_factor'"):
        netcdf(tmp_path, RAW, scale_factor="0.01")


def linked(file, outside):
    file["x"] = h5py.ExternalLink(outside / "other.h5", "z")


def raw(file, outside):
    file.create_dataset("x", (3,), "f8", external=[(str(outside / "raw"), 0, 24)])


def virtual(file, outside):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(outside / "other.h5", "z", (3,))
    file.create_virtual_dataset("x", layout)


def elsewhere(folder, outside, make):
    outside.mkdir(exist_ok=True)
    with h5py.File(outside / "other.h5", "w") as file:
        file["z"] = [1.0, 2, 3]
    np.array([1.0, 2, 3]).tofile(outside / "raw")
    with h5py.File(folder / "a.h5", "w") as file:
        make(file, outside)
    return files.read(folder / "a.h5", "x", (3,), True)


@pytest.mark.parametrize("make", [linked, raw, virtual])
def test_numbers_in_files_out_of_the_run_s_folder_are_refused(tmp_path, make):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="in the run's own folder, got a link to"):
        elsewhere(run, tmp_path / "shared", make)
    np.testing.assert_array_equal(elsewhere(run, run / "parts", make), [1, 2, 3])
    (run / "parts" / "other.h5").unlink()
    if make is virtual:  # which h5py fills in with zeros
        with pytest.raises(ValueError, match="got a link to"):
            files.read(run / "a.h5", "x", (3,), True)


@pytest.mark.parametrize("settings", [{}, {"chunks": (1,)}, {"chunks": (2,), "compression": "gzip"}])
def test_numbers_that_were_not_written_are_not_zero(tmp_path, settings):
    for written, whole in ((0, False), (1, not settings), (3, True)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("x", (3,), "f8", **settings)
            if written:
                data[:written] = 5.0
        if whole:  # a contiguous dataset does not say which of its numbers were written
            assert files.read(tmp_path / "a.h5", "x", (3,), True)[0] == 5
        else:
            with pytest.raises(ValueError, match="expected numbers that were written"):
                files.read(tmp_path / "a.h5", "x", (3,), True)
    with h5py.File(tmp_path / "a.h5", "w") as file:  # as the program says
        file.create_dataset("x", (3,), "f8", fillvalue=7.0, **settings)
    np.testing.assert_array_equal(files.read(tmp_path / "a.h5", "x", (3,), True), [7, 7, 7])


def test_an_array_with_more_behind_it_is_refused(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, ARRAY)
        np.save(file, ARRAY)
    with pytest.raises(ValueError, match="expected one array, got more behind it"):
        files.read(tmp_path / "a.npy", "x", ARRAY.shape, True)


@pytest.mark.slow
def test_packed_numbers_of_a_whole_output_are_not_rounded(tmp_path):
    script = tmp_path / "w.py"
    for scale, answer in ((0.01, None), (2.0, [300, 2050])):
        script.write_text(
            f"import h5py\nwith h5py.File('o.h5', 'w') as f:\n f['n'] = [150, 1025]\n"
            f" f['n'].attrs['scale_factor'] = {scale}\n"
        )
        box = CommandLine(
            [sys.executable, script, "{x}"],
            [ArraySpec("x", ())],
            [ArraySpec("n", (2,), "int64")],
            output_files={"n": "o.h5"},
        )
        if answer is None:
            with pytest.raises(RowFailedError, match=r"whole numbers, which alone int64 can hold, got 1\.5"):
                box(np.zeros(1))
        else:
            np.testing.assert_array_equal(box(np.zeros(1)), [answer])
