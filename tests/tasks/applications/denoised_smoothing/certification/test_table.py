"""The table on disk: read back to the bit, by others too, after any sudden end; damage is refused."""

import csv

import pytest

import tasks
from tasks.applications.denoised_smoothing import DenoisedSmoothing, report
from tasks.applications.denoised_smoothing.certification import (
    Certificate,
    CertificateFile,
    certified_accuracy,
    read_certificates,
)
from tasks.applications.denoised_smoothing.certification.certificate_file import COLUMNS
from tasks.applications.denoised_smoothing.defence import certificates_name
from tasks.errors import DataError
from tasks.folder.result import Result
from tests.tasks.made_runs import begun_run

RECORD = {"sigma": 0.25, "method": "none"}
SOME = [
    Certificate(3, 1, 1, 0.1 + 0.2, 1.25, 99, 0.9123456789012345, 100, 110),
    Certificate(0, 2, -1, 0.0, 90061.5, 55, 0.4, 100, 110, 7, 41),
    Certificate(7, 2, 0, 0.2496, 0.0, 100, 0.95, 100, 110),
]


def begun(path, certificates=SOME):
    file = CertificateFile(path)
    assert file.open(RECORD) == []
    for one in certificates:
        file.append(one)
    return file


def test_a_report_has_the_certificates_of_the_lines_of_its_table_alone(tmp_path):
    """A second seed is under way: it has certificates of one image by one method."""
    run = begun_run(tmp_path, "denoised-smoothing", "demo", DenoisedSmoothing.presets["demo"], (0, 1))
    methods, part = ("none", "mse"), SOME[:1]
    for method in methods:
        begun(run.path / certificates_name(0, method))
    begun(run.path / certificates_name(1, "none"), part)
    run.note([tasks.Row(method, 0, "accuracy", 0.5) for method in methods])
    found = report.certificates(run, Result.read(run.path, so_far=True))
    assert found == {method: [sorted(SOME, key=lambda one: one.idx)] for method in methods}


def test_it_is_read_back_to_the_bit_in_the_order_of_idx(tmp_path):
    begun(tmp_path / "a" / "a.tsv")
    assert read_certificates(tmp_path / "a" / "a.tsv") == sorted(SOME, key=lambda one: one.idx)


def test_others_read_it_as_cohen_s_files(tmp_path):
    """With a plain reader of tab separated values and the formula of their `analyze.py`."""
    begun(tmp_path / "a.tsv")
    with open(tmp_path / "a.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert list(rows[0])[:6] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert [row["time"] for row in rows] == ["0:00:01.250000", "1 day, 1:01:01.500000", "0:00:00"]
    for radius in (0.0, 0.25, 0.3, 0.31):
        share = sum(row["correct"] == "1" and float(row["radius"]) >= radius for row in rows) / 3
        assert certified_accuracy(SOME, radius) == [share]


def test_a_radius_just_below_is_not_rounded_up(tmp_path):
    one = Certificate(0, 1, 1, 0.24999999999999997, 0.0, 100, 0.9, 100, 110)
    file = CertificateFile(tmp_path / "a.tsv")
    file.open(RECORD)
    file.append(one)
    assert certified_accuracy(read_certificates(tmp_path / "a.tsv"), 0.25) == [0.0]


def test_an_abstention_without_a_label_is_not_right_and_is_read_back(tmp_path):
    one = Certificate(0, -1, -1, 0.0, 0.0, 50, 0.4, 100, 110)
    begun(tmp_path / "a.tsv", [one])
    assert read_certificates(tmp_path / "a.tsv") == [one]


@pytest.mark.parametrize("end", range(1, 30))
def test_a_torn_last_line_is_dropped_and_the_rest_goes_on(tmp_path, end):
    path = tmp_path / "a.tsv"
    begun(path)
    content = path.read_bytes()
    path.write_bytes(content[:-end])
    found = CertificateFile(path).open(RECORD)
    assert [one.idx for one in found] == [0, 3]
    CertificateFile(path).append(SOME[2])
    assert path.read_bytes() == content


def test_a_file_torn_in_its_header_begins_anew(tmp_path):
    path = tmp_path / "a.tsv"
    begun(path, [])
    content = path.read_bytes()
    path.write_bytes(content[:9])
    assert CertificateFile(path).open(RECORD) == []
    assert path.read_bytes() == content


def change(column, text):
    def changed(line):
        cells = line.split("\t")
        cells[list(COLUMNS).index(column)] = text
        return "\t".join(cells)

    return changed


@pytest.mark.parametrize(
    "damage, words",
    [
        (change("radius", "nan"), "radius"),
        (change("radius", "-0.1"), "radius"),
        (change("predict", "one"), "one"),
        (change("idx", "0"), "twice"),
        (change("time", "later"), "line 3"),
        (change("time", ""), "no finite time"),
        (change("time", "NaT"), "no finite time"),
        (change("radius", "inf"), "radius inf, which no certificate has"),
        (change("nA", "101"), "nA 101 of N 100"),
        (change("nA", "-1"), "nA -1 of"),
        (change("hits", "101"), "hits 101 of N 100"),
        (change("hits", "-1"), "hits -1 of"),
        (change("correct", "0"), "correct 0 for label 1 and predict 1"),
        (change("correct", "7"), "correct 7"),
        (change("N", "0"), "nA 99 of N 0"),
        (change("pA_lower", "nan"), "pA_lower nan"),
        (change("failed", "111"), "failed 111 of queries 110"),
        (change("idx", "-3"), "idx -3"),
        (lambda line: line + "\t1", "longer"),
        (lambda line: "", "shorter|invalid"),
    ],
)
def test_damage_is_told(tmp_path, damage, words):
    path = tmp_path / "a.tsv"
    begun(path, [SOME[1], SOME[0]])
    lines = path.read_text().split("\n")
    lines[2] = damage(lines[2])
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=words) as caught:
        read_certificates(path)
    assert "a.tsv, line 3: expected certificates" in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (
            b"idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t.5\t1\t0:00:01\n",
            "with the columns idx",
        ),
        (b"\xff\xfe\n", "none that can be read"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_certificates(tmp_path / "a.tsv")
    with pytest.raises(DataError, match="none that can be read"):
        read_certificates(tmp_path / "b.tsv")


@pytest.mark.parametrize("record", [None, "no json", "[1]"])
def test_a_table_without_its_record_is_not_gone_on_with(tmp_path, record):
    file = begun(tmp_path / "a.tsv")
    file.record_path.unlink()
    if record is not None:
        file.record_path.write_text(record)
    with pytest.raises(DataError, match=r"expected its record a\.json"):
        CertificateFile(tmp_path / "a.tsv").open(RECORD)


@pytest.mark.parametrize("record", [RECORD | {"sigma": 0.5}, RECORD | {"more": 1}, {"sigma": 0.25}])
def test_a_table_of_another_certification_is_not_gone_on_with(tmp_path, record):
    begun(tmp_path / "a.tsv")
    with pytest.raises(DataError, match="expected certificates with"):
        CertificateFile(tmp_path / "a.tsv").open(record)
