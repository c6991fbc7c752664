"""What pages show is measured again at one commit: which files are due, and what a failure leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import protocol, release
from benchmarks.catalogue import BENCHMARKS, Benchmark


@pytest.mark.parametrize(
    ("words", "expected"), [("half an hour", 30), ("an hour", 60), ("2 hours", 120), ("a minute", 1)]
)
def test_times_in_words_are_minutes(words, expected):
    assert release.minutes(words) == expected


def test_all_times_of_the_catalogue_are_minutes():
    assert all(release.minutes(benchmark.time) > 0 for benchmark in BENCHMARKS.values())


def test_the_cheapest_that_is_not_of_today_comes_first(monkeypatch):
    commits = {"one.json": "old", "two.json": "new", "three.json": None}
    made = {
        name: Benchmark(name, "about", "none:main", time, results={f"{name}.json": "--size small"})
        for name, time in (("one", "2 hours"), ("two", "a minute"), ("three", "5 minutes"))
    }
    monkeypatch.setattr(release, "BENCHMARKS", made)
    monkeypatch.setattr(release, "read", lambda file: {"commit": commits[file]})
    monkeypatch.setattr(release, "is_of_today", lambda commit: commit == "new")
    assert [part.benchmark.name for part in release.stale(made)] == ["three", "one"]


def test_a_file_is_as_old_as_its_oldest_part():
    runs = {"a": [{"error": 1.0, "commit": "new"}, {"error": 1.0, "commit": "old"}], "b": {"commit": None}}
    assert release.commits({"commit": "new", "programs": runs}) == {"new", "old", None}
    assert release.commits({"commit": "new", "lines": [1.0, {"error": 1.0}]}) == {"new"}
    assert release.commits({}) == {None}


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A benchmark's part with a committed file."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "one.json").write_text("before")
    monkeypatch.setattr(protocol, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(release, "ASIDE", tmp_path / "aside")
    benchmark = Benchmark("one", "about", "none:main", "a minute", results={"one.json": "--size small"})
    return release.Part(benchmark, "python -m benchmarks one", ["one.json"])


@pytest.mark.parametrize(("code", "left"), [(0, "new"), (1, "before")])
def test_a_file_is_measured_from_its_start_and_comes_back_where_that_fails(part, code, left, monkeypatch):
    path = protocol.RESULTS / "one.json"

    def run(words, **_):
        assert words == [sys.executable, "-m", "benchmarks", "one"] and not path.exists()
        path.write_text("new")
        return subprocess.CompletedProcess(words, code)

    monkeypatch.setattr(release.subprocess, "run", run)
    assert part.measure() == (code == 0) and path.read_text() == left


def test_a_file_comes_back_where_a_user_interrupts(part, monkeypatch):
    def run(words, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(release.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        part.measure()
    assert (protocol.RESULTS / "one.json").read_text() == "before"


def test_files_of_changed_code_are_of_no_commit():
    assert not release.is_of_today(None) and not release.is_of_today(f"abc{protocol.CHANGED}")
    assert not release.is_of_today("no-such-commit")
