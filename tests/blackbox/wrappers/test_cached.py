"""`Cached`: no row is paid for twice, by any process, after any accident; and none is taken for another."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec, BlackBoxFunction, Budgeted
from blackbox.errors import BudgetError, ConfigurationError, RowFailedError
from blackbox.wrappers import Cached, Fallback, RateLimited, Retrying, Wrapper, answers
from blackbox.wrappers.identity import identity
from tests.blackbox.boxes import PAIR, STATE, ErrorCase, FunctionBox, RowsBox, error_table

SPECIAL = np.array([0.0, -0.0, 5e-324, 1e300, -1e-300, np.pi])


class Paid(BlackBoxFunction):
    """sin(factor state), each row remembered and appended to a log, if there is one."""

    inputs = (STATE,)
    outputs = (STATE,)

    def __init__(self, factor: float = 1.0, log: Path | None = None, pause: float = 0.0) -> None:
        super().__init__(failures="keep")
        self.factor = factor
        self.identity = f"factor {factor}"
        self.log, self.pause = log, pause
        self.ran: list[tuple[float, ...]] = []

    def evaluate_rows(self, state: Any) -> Any:
        self.ran += [tuple(row) for row in state.tolist()]
        if self.log is not None:
            with self.log.open("a") as log:
                log.write("".join(f"{x!r}\n" for x in state[:, 0].tolist()))
        time.sleep(self.pause * len(state))
        if (state[:, 0] < 0).any():
            raise ValueError("negative")
        return np.sin(self.factor * state)


def states(*first: float) -> np.ndarray:
    return np.stack([np.array(first, float), np.ones(len(first))], 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "answers.db"


# What is kept


@pytest.mark.parametrize("block", [None, 1, 2, 100])
def test_a_row_is_run_once_in_this_run_and_the_next(path, block):
    state = states(1, 2, 3, 2, 1, 4)
    box = Cached(Paid(), path, block=block)
    np.testing.assert_array_equal(box(state), np.sin(state))
    np.testing.assert_array_equal(box(state[::-1]), np.sin(state[::-1]))
    assert box.box.ran == [(x, 1.0) for x in (1, 2, 3, 4)]
    assert (box.ledger.rows_asked, box.ledger.rows_run, box.ledger.rows_cached) == (12, 4, 8)
    box.close()
    later = Cached(Paid(), path)
    np.testing.assert_array_equal(later(states(4, 5)), np.sin(states(4, 5)))
    assert later.box.ran == [(5.0, 1.0)]
    assert (later.ledger.rows_run, later.ledger.rows_cached) == (1, 1)


class Several(FunctionBox):
    """A box with an identity, for functions that have no name."""

    identity = "several"
    evaluate_rows = RowsBox.evaluate_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("answer", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_and_shape_comes_back_to_the_bit(path, dtype, answer):
    outputs = (
        ArraySpec("open", (2, 3)), ArraySpec("single", (), "float32"), ArraySpec("whole", (2,), "int64"),
        ArraySpec("small", (1, 2), "uint8"), ArraySpec("flag", (), "bool"), 
        ArraySpec("number", (3,), "int32"),
    )  # fmt: skip

    def function(field: Any, number: Any) -> Any:
        whole = torch.stack([2**62 + number.long(), -number.long()], 1)
        small = whole[:, None].to(torch.uint8)
        return (
            (field / 3).to(answer), (number / 7).float(), whole, small, number > 1, whole[:, [0, 1, 1]].int()
        )  # fmt: skip

    generator = torch.Generator().manual_seed(1)
    field, number = torch.randn(4, 2, 3, generator=generator, dtype=dtype), torch.arange(4.0).to(dtype)
    plain = Several(function, PAIR, outputs, "torch")
    box = Cached(Several(function, PAIR, outputs, "torch"), path)
    for given in ((field, number), (field.numpy(), number.numpy())):
        for _ in range(2):
            for found, truth in zip(box(*given), plain(*given), strict=True):
                assert found.dtype == truth.dtype
                np.testing.assert_array_equal(found, truth)
    assert (box.ledger.rows_run, box.ledger.rows_cached) == (4, 12)


def test_answers_are_counted_for_each_box(path):
    one, other = Cached(Paid(), path), Cached(Paid(2.0), path)
    assert (one.rows_kept(), other.rows_kept()) == (0, 0)
    one(states(1, 2, 2, -1))  # one asked once only, and one that fails
    other(states(1))
    assert (one.rows_kept(), other.rows_kept()) == (2, 1)
    assert Cached(Budgeted(Paid(), rows=0), path).rows_kept() == 2


def test_rows_differ_by_bytes_dtype_and_box(path):
    number = ArraySpec("number", ())

    def once(factor: float, values: np.ndarray) -> int:
        inner = Several(lambda x: factor * x, (number,), (number,))
        inner.identity = f"factor {factor}"
        box = Cached(inner, path)
        np.testing.assert_array_equal(box(values), factor * values)
        return box.ledger.rows_run

    assert once(2.0, SPECIAL) == len(SPECIAL)
    assert once(2.0, SPECIAL) == 0
    assert once(3.0, SPECIAL) == len(SPECIAL)
    assert once(2.0, np.array([0.0, -0.0], "f4")) == 2
    assert once(2.0, np.nextafter(SPECIAL[5:], 4)) == 1


def test_two_inputs_cannot_be_taken_for_each_other(path):
    pair = (ArraySpec("a", (2,), "uint8"), ArraySpec("b", (2,), "uint8"))
    box = Cached(Several(lambda a, b: a[:, 0] - b[:, 1] / 3, pair, (ArraySpec("c", ()),)), path)
    a, b = np.array([[1, 2]], "u1"), np.array([[3, 4]], "u1")
    assert box(a, b) == 1 - 4 / 3
    assert box(b, a) == 3 - 2 / 3
    assert box.ledger.rows_run == 2


@pytest.mark.parametrize("policy", ["keep", "raise"])
def test_failed_rows_are_not_kept_and_the_others_are(path, policy):
    box = Cached(Paid(), path)
    box.failures = policy
    state = states(1, -1, 2, -1, 3)
    for _ in range(2):
        if policy == "raise":
            with pytest.raises(RowFailedError, match="negative"):
                box(state)
        else:
            np.testing.assert_array_equal(np.isnan(box(state)).any(1), state[:, 0] < 0)
    assert box.ledger.rows_failed == 4
    box.box.ran.clear()
    np.testing.assert_array_equal(box(states(1, 2, 3)), np.sin(states(1, 2, 3)))
    assert box.box.ran == []
    assert box.ledger.rows_cached == 3 + 3


def test_integer_answers_of_rows_that_were_not_run_are_not_kept(path):
    class Each(FunctionBox):
        identity = "each"

        def evaluate(self, *arrays: Any) -> Any:
            return self.give(*arrays)

    def function(state: Any) -> Any:
        if state[0] == 1:
            raise ValueError
        return np.int64(7)

    box = Cached(Each(function, outputs=(ArraySpec("count", (), "int64"),)), path)
    with pytest.raises(RowFailedError):
        box(states(1, 2))  # under "raise", a box of single rows would stop at the first
    np.testing.assert_array_equal(box(states(2, 3)), [7, 7])


# Whose answers


class Flow(Enum):
    CALM, WILD = 1, 2


@dataclass
class Settings:
    viscosity: float
    grid: tuple[int, ...]
    flow: Flow = Flow.CALM

    def product(self, state: Any) -> Any:
        return self.viscosity * state


MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]])


class Described(BlackBoxFunction):
    """Whatever it is given is its configuration."""

    inputs = (STATE,)
    outputs = (STATE,)

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def evaluate_rows(self, state: Any) -> Any:
        return state


class Namesake(Described):
    pass


DIFFERENT: list[dict[str, Any]] = [
    {}, {"a": None}, {"a": 1}, {"a": True}, {"a": 1.0}, {"a": "1"}, {"a": b"1"}, {"a": 0.0}, {"a": -0.0},
    {"a": float("nan")}, {"_a": 1}, {"b": 1}, {"a": [1]}, {"a": (1,)}, {"a": {1}}, {"a": {1: 2}},
    {"a": {"1": 2}}, {"a": [1, [2]]}, {"a": [[1], 2]}, {"a": np.ones(2)}, {"a": np.ones((2, 1))},
    {"a": np.ones(2, "f4")}, {"a": np.array([1, 2.0])}, {"a": np.float32(1)}, {"a": Flow.CALM},
    {"a": Flow.WILD}, {"a": Settings(0.1, (2, 3))}, {"a": Settings(0.1, (2, 4))}, {"a": Path("mesh")},
    {"a": Settings(0.1, (2, 3), Flow.WILD)}, {"a": np.sin.__class__}, {"a": states}, {"a": identity}, 
    {"version": 2}, {"version": "2"},
    {"identity": "x"},
    {"identity": "y"}, {"a": torch.ones(2).bool()}, {"a": 1 + 2j}, {"a": [1, 2], "b": 3},
    {"a": [1], "b": [2, 3]}, {"arrays": "torch"}, {"a": MATRIX.dot}, {"a": (2 * MATRIX).dot},
    {"a": Settings(0.1, (2, 3)).product}, {"a": Settings(0.1, (2, 4)).product}, {"a": partial(states, 1)},
    {"a": partial(states, 2)}, {"a": partial(states, n=1)},
]  # fmt: skip


def test_no_two_different_boxes_are_taken_for_each_other():
    found = [identity(cls(**settings)) for settings in DIFFERENT for cls in (Described, Namesake)]
    assert len(set(found)) == len(found) == 2 * len(DIFFERENT)
    specs = [(STATE,), (ArraySpec("state", (2,), "float32"),), (ArraySpec("state", (3,)),), PAIR]
    assert len({identity(Several(states, one, two)) for one in specs for two in specs}) == 16


@pytest.mark.slow
def test_an_identity_is_the_same_in_another_process_and_whatever_the_order():
    def make(reverse: bool) -> Described:
        names = ["alpha", "beta", "gamma", "delta"][:: -1 if reverse else 1]
        return Described(tags=set(names), **dict.fromkeys(names, 1))

    assert identity(make(True)) == identity(make(False))
    code = (
        "from tests.blackbox.wrappers.test_cached import *\n"
        "print(identity(Described(tags={'a', 'b', 'c', 'd'}, a=np.arange(3.0), s=Settings(0.1, (1,)))))"
    )
    command = [sys.executable, "-c", code]
    other = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=other, capture_output=True, text=True, check=True, timeout=100)
    here = Described(tags={"a", "b", "c", "d"}, a=np.arange(3.0), s=Settings(0.1, (1,)))
    assert done.stdout.strip() == identity(here)


def test_policy_ledger_and_transparent_wrappers_are_no_part_of_it(path):
    plain = Described(a=1)
    before = identity(plain)
    plain.failures = "keep"
    plain(np.ones(2))
    stack = Budgeted(Retrying(RateLimited(plain, per_second=100.0)), rows=5)
    assert identity(stack) == identity(plain) == before
    assert Cached(stack, path).identity == Cached(plain, path).identity


def test_what_a_wrapper_has_counted_is_no_part_of_it():
    inner = Several(lambda state: state / 0)
    inner.failures, recovering = "keep", Fallback(inner, 0.0)
    before = identity(recovering)
    with np.errstate(all="ignore"):
        recovering(states(1, 2))
    assert recovering.ledger.rows_recovered == 2 and identity(recovering) == before


def test_wrappers_that_change_answers_are_part_of_it():
    class Doubled(Wrapper):
        """Might do anything."""

    found = {identity(Described()), identity(Doubled(Described())), identity(Doubled(Described(a=1)))}
    found |= {identity(Fallback(Described(), value)) for value in (0.0, 1.0)}
    assert len(found) == 5


@suppress_type_checks
def cached(folder: Any = "/nowhere/at/all", **settings: Any) -> Any:
    return Cached(Described(**settings.pop("box", {})), folder, **settings)


def foreign(content: bytes) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.db")
        path.write_bytes(content)
        return cached(path)


def foreign_database() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder, "file.db"))
        connection.execute("CREATE TABLE answers (theirs)")
        connection.close()
        return cached(Path(folder, "file.db"))


ENDLESS = """
ALTER TABLE answers RENAME TO theirs;
CREATE VIEW answers AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
SELECT CAST(i AS BLOB) AS key, box, answer, checksum FROM n, theirs;
"""
LOSING = "CREATE TRIGGER losing AFTER INSERT ON answers BEGIN DELETE FROM answers; END;"


def changed_by(script: str) -> Any:
    """A file of answers in whose schema somebody has put more; reading the first would never end."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.db")
        cached(path)(np.ones((2, 2)))
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
        return cached(path)(np.ones((2, 2)))


VIEW = threading.local()
REFUSED: list[Any] = [VIEW, partial(print, VIEW), np.array([VIEW], object), [VIEW], {"a": VIEW}]
ERRORS = [
    ErrorCase("random", lambda: cached(box={"deterministic": False}), ConfigurationError,
              ["not deterministic", "set box.deterministic = True"]),
    *(ErrorCase(f"part-{i}", lambda part=part: cached(box={"_part": part}), ConfigurationError,
                ["Described._part", "version='1'"]) for i, part in enumerate(REFUSED)),
    ErrorCase("version", lambda: cached(version=3), ConfigurationError, ["a text, got 3", "version='3'"]),
    ErrorCase("earlier", lambda: changed_by("PRAGMA application_id=1650618232"), ConfigurationError,
              ["blackbox 0.2", "delete it"]),
    ErrorCase("block", lambda: cached(block=0), ConfigurationError, ["Cached, block", "got 0"]),
    ErrorCase("no-path", lambda: cached(None), ConfigurationError, ["path of a file", "got None"]),
    ErrorCase("no-folder", lambda: cached("/proc/none/x"), ConfigurationError, ["path", "/proc/none/x"]),
    ErrorCase("text", lambda: foreign(b"a,b\n1,2\n" * 1000), ConfigurationError, ["not a database", "move"]),
    ErrorCase("theirs", foreign_database, ConfigurationError, ["another program", "Choose another path"]),
    ErrorCase("view", lambda: changed_by(ENDLESS), ConfigurationError, ["holds the view 'answers'", "move"]),
    ErrorCase("trigger", lambda: changed_by(LOSING), ConfigurationError, ["the trigger 'losing'", "move"]),
]  # fmt: skip


@error_table(ERRORS)
def test_refused(case):
    case.check()


def test_first_answers_of_a_random_box_are_kept_when_asked_for(path):
    generator = np.random.default_rng(1)
    inner = Several(lambda state: state + generator.normal(size=state.shape))
    inner.deterministic = False
    with pytest.raises(ConfigurationError):
        Cached(inner, path)
    inner.deterministic = True
    box = Cached(inner, path)
    first = box(states(1, 2))
    np.testing.assert_array_equal(box(states(2, 1)), first[::-1])


# Accidents


def change(path: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE answers SET answer = zeroblob(length(answer))",
        "UPDATE answers SET answer = substr(answer, 1, length(answer) - 1)",
        "UPDATE answers SET answer = X''",
        "UPDATE answers SET answer = 'text'",
        "UPDATE answers SET checksum = X'00'",
        "UPDATE answers SET (answer, checksum) = (SELECT answer, checksum FROM answers LIMIT 1)",
    ],
)
def test_damaged_answers_are_asked_for_again_with_one_warning(path, damage):
    state = states(1, 2, 3)
    first = Cached(Paid(), path)
    first(state)
    first.close()
    change(path, damage)
    box = Cached(Paid(), path)
    with pytest.warns(RuntimeWarning, match="damaged answers. They are asked for again") as caught:
        np.testing.assert_array_equal(box(state), np.sin(state))
    assert len(caught) == 1
    assert len(box.box.ran) == (2 if "SELECT" in damage else 3)
    change(path, "UPDATE answers SET checksum = X'00'")
    np.testing.assert_array_equal(box(state), np.sin(state))  # warned already
    np.testing.assert_array_equal(box(state), np.sin(state))
    assert len(box.box.ran) == (2 if "SELECT" in damage else 3) + 3


NUMBERS = np.ones(2).tobytes()


@pytest.mark.parametrize(
    "answer",
    [
        *(
            b"",
            b"\n",
            b"float64\n",
            b"float99\n" + NUMBERS,
            b"\xff\xfe\n",
            b"float64,float64\n" + 2 * NUMBERS,
        ),
        *(
            b"float64\n" + NUMBERS[:-1],
            b"float64\n" + 2 * NUMBERS,
            b"float64\n" + np.full(2, np.nan).tobytes(),
        ),
    ],
)
def test_answers_with_a_right_checksum_that_are_none_are_asked_for_again(path, answer):
    state = states(1, 2, 3)
    with closing(Cached(Paid(), path)) as first:
        first(state)
    with closing(sqlite3.connect(path)) as connection, connection:
        for (key,) in connection.execute("SELECT key FROM answers").fetchall():
            values = answer, answers.digest(key, answer), key
            connection.execute("UPDATE answers SET answer = ?, checksum = ? WHERE key = ?", values)
    box = Cached(Paid(), path)
    with pytest.warns(RuntimeWarning, match="3 damaged answers. They are asked for again"):
        np.testing.assert_array_equal(box(state), np.sin(state))
    np.testing.assert_array_equal(box(state), np.sin(state))
    assert len(box.box.ran) == 3


def test_a_damaged_file_gives_right_answers_or_a_sentence(tmp_path):
    state = np.random.default_rng(1).normal(size=(100, 2)) ** 2
    with closing(Cached(Paid(), tmp_path / "good")) as first:
        first(state)
    content, draws = (tmp_path / "good").read_bytes(), np.random.default_rng(5)
    variants = [content[:size] for size in (0, 1, 99, 4095, 8192, len(content) - 1)]
    variants += [b"key,answer\n1,2\n" * 99, draws.bytes(20_000)]
    for count in (3, 30, 300, 3_000):  # of 300 bytes some are in names that SQLite quotes
        for _ in range(8):
            damaged = bytearray(content)
            for place in draws.integers(len(content) if count < 300 else 4096, size=count):
                damaged[place] = draws.integers(256)
            variants.append(bytes(damaged))
    table = content.index(b"CREATE TABLE answers")
    variants.append(content[: table + 7] + b"\xea\xff" + content[table + 9 :])
    refused = 0
    for number, variant in enumerate(variants):
        path = tmp_path / str(number)
        path.write_bytes(variant)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                with closing(Cached(Paid(), path)) as box:
                    for _ in range(2):
                        np.testing.assert_array_equal(box(state), np.sin(state))
                    box.rows_kept()
            except ConfigurationError as error:
                assert "expected a file of answers or none yet, got" in str(error)
                refused += 1
    assert 5 < refused < len(variants)


def test_a_file_with_a_page_overwritten_costs_answers_and_no_more(path):
    state = np.random.default_rng(1).normal(size=(500, 2)) ** 2
    first = Cached(Paid(), path)
    first(state)
    first.close()
    content = bytearray(path.read_bytes())
    content[2 * 4096 :] = os.urandom(len(content) - 2 * 4096)
    path.write_bytes(content)
    box = Cached(Paid(), path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            np.testing.assert_array_equal(box(state), np.sin(state))
    assert len(caught) == 1 and "answers.db" in str(caught[0].message)


def test_a_disk_that_takes_no_more_costs_no_answer(path):
    box = Cached(Paid(), path)
    box(states(1))
    box._answers._connection().execute("PRAGMA query_only = ON")
    with pytest.warns(RuntimeWarning, match="cannot be written.*not kept"):
        np.testing.assert_array_equal(box(states(1, 2)), np.sin(states(1, 2)))
    assert box.box.ran == [(1.0, 1.0), (2.0, 1.0)]


def workers() -> Any:
    """Processes that start in a moment: forks of one that has imported this."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run(folder: Path) -> None:
    box = Cached(Paid(log=folder / "log", pause=0.02), folder / "answers.db", block=2)
    np.testing.assert_array_equal(box(states(*range(40))), np.sin(states(*range(40))))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    log = tmp_path / "log"
    process = workers().Process(target=run, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while (not log.exists() or len(log.read_text().splitlines()) < 10) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert 10 <= len(log.read_text().splitlines()) < 40
    again = workers().Process(target=run, args=(tmp_path,))
    again.start()
    again.join(60)
    assert again.exitcode == 0
    asked = [float(line) for line in log.read_text().splitlines()]
    assert set(asked) == set(range(40))
    assert len(asked) <= 42  # one block at most is paid for twice


def fill(folder: Path, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(60)
    box = Cached(Paid(log=folder / "log"), folder / "shared" / "answers.db", block=5)
    state = states(*order.tolist())
    error = np.abs(box(state) - np.sin(state)).max()
    box.close()
    return float(error)


@pytest.mark.slow
def test_processes_share_a_file_from_its_making_on(tmp_path):
    with workers().Pool(4) as pool:
        assert pool.starmap(fill, [(tmp_path, seed) for seed in range(8)], chunksize=1) == [0.0] * 8
    box = Cached(Paid(), tmp_path / "shared" / "answers.db")
    box(states(*range(60)))
    assert box.ledger.rows_run == 0
    connection = sqlite3.connect(tmp_path / "shared" / "answers.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*), count(DISTINCT box) FROM answers").fetchone() == (60, 1)
    assert connection.execute("SELECT identity FROM boxes").fetchone() == (box.identity,)
    connection.close()


def test_a_pickled_cache_reads_the_same_file(path):
    box = Cached(Paid(), path)
    box(states(1))
    twin = pickle.loads(pickle.dumps(box))
    twin(states(1, 2))
    assert twin.ledger.rows_run - box.ledger.rows_run == 1
    box(states(2))
    assert box.ledger.rows_run == 1


def test_a_child_of_a_fork_opens_the_file_for_itself(path):
    box = Cached(Paid(), path)
    box(states(1))
    child = os.fork()
    if child == 0:
        box(states(1, 2, 3))
        os._exit(box.ledger.rows_run)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    box(states(1, 2, 3))
    assert box.ledger.rows_run == 1


# In a stack


def test_cached_rows_cost_no_budget(path):
    box = Budgeted(Cached(Paid(), path), rows=4)
    box(states(1, 2, 3))
    box(states(1, 2, 3, 3, 2, 1))
    np.testing.assert_array_equal(box(states(1, 4, 4)), np.sin(states(1, 4, 4)))
    assert (box.rows_left, box.ledger.rows_run, box.ledger.rows_cached) == (0, 4, 6 + 2)
    with pytest.raises(BudgetError, match="at most 0 rows, got one of 1 "):
        box(states(1, 5))
    box(states(4, 3, 2, 1))
    assert box.ledger.rows_run == 4


class Served(BlackBoxFunction):
    """Twice the state, by a service with a key."""

    inputs = (STATE,)
    outputs = (STATE,)

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def evaluate_rows(self, state: Any) -> Any:
        return 2 * state


def test_a_file_holds_no_values_of_attributes(tmp_path):
    path = tmp_path / "answers.db"
    cached = Cached(Retrying(Served("k3y-of-mine")), path)
    cached(states(1, 2))
    assert "key=" in cached.identity and Cached(Served("another"), path).identity != cached.identity
    cached.close()
    assert all(b"k3y-of-mine" not in file.read_bytes() for file in tmp_path.iterdir())
