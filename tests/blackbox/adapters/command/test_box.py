import json
import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec
from blackbox.adapters import CommandLine
from blackbox.conformance import check_black_box
from blackbox.errors import ConfigurationError, DefinitionError, RowFailedError
from blackbox.wrappers import Parallel
from blackbox.wrappers.identity import identity
from tests.blackbox.adapters.training import function, gradient_error, loss_drop

X, Y = (ArraySpec("x", (2,)),), (ArraySpec("y", (2,)),)
HERE = Path(__file__).parent
CASE = {"case.txt": "a = {x[0]}\nb = {x[1]}\n"}
RESULT = {"stdout.txt": "result: {y}"}

# reads one file and writes the other, a row or a block of rows
SCRIPT = """
import sys
import numpy as np
given, wanted = sys.argv[1:]
def load(path):
    if path.endswith(".h5"):
        import h5py
        with h5py.File(path) as file:
            return file["x"][()]
    if path.endswith(".npy"):
        return np.load(path)
    return np.loadtxt(path, delimiter="," if "csv" in path else None)
def save(path, y):
    if path.endswith(".h5"):
        import h5py
        with h5py.File(path, "w") as file:
            file["results/y"] = y
    elif path.endswith(".npy"):
        np.save(path, y)
    else:
        np.savetxt(path, y, delimiter="," if "csv" in path else " ")
x = load(given)
a, b = x[..., 0], x[..., 1]
with open("log", "w") as file:
    print(x.shape, x.dtype, file=file)
save(wanted, np.stack([np.sin(a) + 0.5 * b, a * b + b], axis=-1))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    program = tmp_path_factory.mktemp("c") / "function"
    subprocess.run(["cc", "-O1", "-o", program, HERE / "function.c", "-lm"], check=True)
    return program


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "solver.py"
    path.write_text(SCRIPT)
    return path


def python(script, given="x.npy", wanted="y.npy", place="", **settings):
    return CommandLine(
        [sys.executable, script, given, wanted], X, Y,
        input_files={"x": given}, output_files={"y": wanted + place}, **settings,
    )  # fmt: skip


def shell(code, inputs=X, outputs=Y, *words, **settings):
    settings = {"input_files": {"x": "x.csv"}, "output_files": {"y": "y.csv"}} | settings
    return CommandLine(["sh", "-c", code, "sh", *words], inputs, outputs, **settings)


@pytest.mark.needs("cc")
def test_a_network_is_trained_through_a_c_program(compiled, tmp_path):
    box = CommandLine([compiled, "case.txt"], X, Y, input_templates=CASE, output_templates=RESULT,
                      scratch=tmp_path, timeout=60)  # fmt: skip
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(box(x), function(x), rtol=1e-15, atol=1e-15)
    assert gradient_error(box) < 1e-5
    # 20 steps: the base and 2 queries for each of 4 rows; two of these are asked again at steps 0, 1 and 10
    box.ledger.rows_run = 0
    assert loss_drop(box, steps=20, rows=4) > 5
    assert box.ledger.rows_run == 20 * 4 * 3 + 3 * 4
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_network_is_trained_through_a_script_that_takes_blocks(script):
    box = python(script, vectorized=True, timeout=60)
    assert loss_drop(box, steps=6, rows=4) > 3
    assert box.ledger.rows_run == 6 * 4 * 3 + 2 * 4  # two again at steps 0 and 1, over half of mu and back


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("vectorized", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "given, wanted, place",
    [
        ("x.npy", "y.npy", ""),
        ("in/x.h5", "y.h5", ":results/y"),
        ("x.csv", "y.txt", ""),
        ("x.dat", "y.csv", ""),
    ],
)
def test_files_of_every_format(script, vectorized, given, wanted, place):
    script.write_text("import os; os.makedirs('out', exist_ok=True)\n" + SCRIPT)
    box = python(script, given, wanted, place, vectorized=vectorized)
    x = torch.randn(2, 2, dtype=torch.float64)
    torch.testing.assert_close(box(x), function(x), rtol=1e-15, atol=1e-15)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_hold_float64_where_the_spec_is_open_and_the_caller_gets_its_own(tmp_path, script, dtype):
    script.write_text(SCRIPT.replace('open("log"', f'open("{tmp_path}/log"'))
    x = torch.tensor([[0.1, 0.2]], dtype=dtype)
    given = python(script)(x)
    assert (tmp_path / "log").read_text() == "(2,) float64\n"
    assert given.dtype == dtype
    torch.testing.assert_close(given, function(x))


def write_in_brackets(path, x):
    path.write_text(f"[{path.read_text().strip()} {' '.join(map(repr, x.tolist()))}]")


def read_in_brackets(path):
    words = path.read_text().strip("[]").split()
    return np.array(words[1:], float)


def in_brackets(
    tmp_path, read=read_in_brackets, program="print(open('in/x').read()[:-1], end='')", **settings
):
    (tmp_path / "x").write_text("numbers:\n")
    return CommandLine(
        [sys.executable, "-c", program],
        X,
        [ArraySpec("y", (2,))],
        input_files={"x": ("in/x", write_in_brackets)},
        output_files={"y": ("stdout.txt", read)},
        copies={"in/x": tmp_path / "x"},
        **settings,
    )


def test_files_of_one_s_own_format_go_through_one_s_own_functions(tmp_path):
    box = in_brackets(tmp_path)
    given = np.random.default_rng(0).normal(size=(3, 2))
    np.testing.assert_array_equal(box(given), given)  # what was in the copied file stays, and is skipped here
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(box))(given), given)


def test_a_file_that_one_s_own_function_cannot_read_fails_its_row(tmp_path):
    box = in_brackets(tmp_path, program="import sys; sys.exit(print('numbers: 1 2 3'))", failures="keep")
    assert np.isnan(box(np.ones((1, 2)))).all()
    assert "expected an array of shape (2,), got (3,)" in box.ledger.first_failure
    box = in_brackets(tmp_path, program="print('numbers: 1 two')", failures="keep")
    assert np.isnan(box(np.ones((1, 2)))).all() and "'two'" in box.ledger.first_failure


def reading(value):
    def read(path):
        return [value, value]

    return read


def test_a_cache_tells_functions_apart_and_what_is_none_is_refused(tmp_path):
    assert identity(in_brackets(tmp_path)) == identity(in_brackets(tmp_path))
    assert identity(in_brackets(tmp_path)) != identity(in_brackets(tmp_path, read=np.load))
    one, same, other = (identity(in_brackets(tmp_path, read=reading(value))) for value in (1.0, 1.0, 2.0))
    assert one == same != other
    with suppress_type_checks(), pytest.raises(ConfigurationError, match="got 3"):
        in_brackets(tmp_path, read=3)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("max_rows, blocks", [(None, [5]), (2, [2, 2, 1]), (9, [5])])
def test_blocks_have_at_most_max_rows(tmp_path, script, max_rows, blocks):
    script.write_text(SCRIPT.replace('open("log", "w"', f'open("{tmp_path}/log", "a"'))
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(python(script, vectorized=True, max_rows=max_rows)(x), function(x))
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"({rows}, 2) float64" for rows in blocks]


def test_integers_booleans_and_arguments(tmp_path):
    inputs = (ArraySpec("n", (), "int64"), ArraySpec("flags", (2,), "bool"), ArraySpec("x", (2,)))
    outputs = (ArraySpec("n", (), "int64"), ArraySpec("echo", (5,)))
    code = 'printf "$1" > n.txt; echo "$2" > echo.txt'
    box = shell(
        code, inputs, outputs, "{n}", "{flags} {n:+d} {x[1]:.3f} {x[0]}",
        input_files=None, output_files={"n": "n.txt", "echo": "echo.txt"},
    )  # fmt: skip
    n, echo = box(np.array([7]), np.array([[True, False]]), np.array([[1e-7, 2.0]]))
    assert n.dtype == np.int64 and n.tolist() == [7]
    assert echo.tolist() == [[1, 0, 7, 2, 1e-7]]


def test_templates_may_be_files_and_are_read_when_the_box_is_made(tmp_path):
    template = tmp_path / "case.template"
    template.write_text('{"u": [{x}], "other": {}}')
    box = shell("sed 's/.*\\[\\(.*\\)\\].*/\\1/' in/case.json | tr ' ' ',' > y.csv", input_files=None,
                input_templates={"in/case.json": template})  # fmt: skip
    template.write_text("changed")
    assert box(np.array([0.1, 2.5])).tolist() == [0.1, 2.5]


def test_what_a_program_needs_beside_it_is_copied_and_an_old_answer_there_is_none(tmp_path):
    (tmp_path / "case" / "out").mkdir(parents=True)
    (tmp_path / "case" / "mesh").write_text("10,20\n")
    (tmp_path / "case" / "out" / "y.csv").write_text("1,1\n")
    settings = {"output_files": {"y": "case/out/y.csv"}, "copies": {"case": tmp_path / "case"}}
    assert shell("cp case/mesh case/out/y.csv", **settings)(np.zeros(2)).tolist() == [10, 20]
    with pytest.raises(RowFailedError, match=r"expected the program to write case/out/y.csv"):
        shell("true", **settings)(np.zeros(2))
    assert (tmp_path / "case" / "out" / "y.csv").read_text() == "1,1\n"


def test_a_program_by_a_relative_path_is_that_of_the_moment(tmp_path, monkeypatch):
    (tmp_path / "solver").write_text("#!/bin/sh\ncp x.csv y.csv\n")
    (tmp_path / "solver").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    box = CommandLine(["./solver"], X, Y, input_files={"x": "x.csv"}, output_files={"y": "y.csv"})
    monkeypatch.chdir("/")
    assert box(np.array([1.0, 2.0])).tolist() == [1, 2]


def test_a_path_without_a_folder_is_a_program_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "legacy").write_text("#!/bin/sh\ncp x.csv y.csv\n")
    (tmp_path / "legacy").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    files = {"input_files": {"x": "x.csv"}, "output_files": {"y": "y.csv"}}
    box = CommandLine([Path("legacy")], X, Y, **files)
    assert box(np.array([1.0, 2.0])).tolist() == [1, 2]
    with pytest.raises(
        ConfigurationError, match=r"got 'legacy'\. The working directory has .*Path\('legacy'\)"
    ):
        CommandLine(["legacy"], X, Y, **files)  # as in a shell, the PATH is for names alone


# --- failures


@pytest.mark.needs("cc")
def test_a_row_whose_program_fails_is_a_failed_row(compiled):
    box = CommandLine([compiled, "case.txt"], X, Y, input_templates=CASE, output_templates=RESULT)
    x = torch.tensor([[1.0, 2], [2e6, 0], [3, 4]], dtype=torch.float64)
    with pytest.raises(RowFailedError) as caught:
        box(x)
    assert "row 1 failed" in str(caught.value)
    assert "function ended with status 3; the last lines of its stderr: diverged at a = 2e+06" in str(
        caught.value
    )
    box.failures = "keep"
    given = box(x)
    assert given.isnan().any(dim=1).tolist() == [False, True, False]
    torch.testing.assert_close(given[[0, 2]], function(x[[0, 2]]))
    assert box.ledger.rows_failed == 2


@pytest.mark.slow
def test_under_keep_a_block_that_fails_is_halved_within_its_chunk(script):
    script.write_text(SCRIPT.replace("a, b =", "assert not (x > 9).any(), 'too large'\na, b ="))
    box = python(script, vectorized=True, max_rows=2, failures="keep")
    x = torch.tensor([[0.0, 1], [0, 2], [10, 3], [0, 4]], dtype=torch.float64)
    given = box(x)
    assert given.isnan().any(dim=1).tolist() == [False, False, True, False]
    torch.testing.assert_close(given[[0, 1, 3]], function(x[[0, 1, 3]]))
    assert box.ledger.rows_run == 2 + 2 + 1 + 1
    box.failures = "raise"
    with pytest.raises(RowFailedError, match=r"a block of 2 rows failed.*AssertionError: too large"):
        box(x)


FAILING = [  # (what the shell does, settings, words of the message)
    ("sleep 60", {"timeout": 0.3}, ["TimeoutError", "sh ran longer than 0.3 s and was killed"]),
    ("true", {}, ["FileNotFoundError", "to write y.csv, found only stderr.txt, stdout.txt, x.csv"]),
    ("ln -s /etc/passwd y.csv", {}, ["a link that leads out"]),
    ("mkfifo y.csv", {}, ["plain file"]),
    ("mkdir y.csv", {}, ["plain file"]),
    ("echo 1,2,3 > y.csv", {}, ["y.csv: expected 2 numbers for shape (2,), found more"]),
    ("echo 1 > y.csv", {}, ["found 1"]),
    ("echo 1,nan > y.csv", {}, ["not finite"]),
    ("echo drag: none", {"output_files": None, "output_templates": RESULT}, ["text like the template"]),
    ("printf 'result: 1'", {"output_files": None, "output_templates": RESULT}, ["text like the template"]),
]


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("code, settings, words", FAILING)
def test_whatever_a_run_does_wrong_fails_its_row_and_no_other(tmp_path, code, settings, words):
    code = f"if grep -q '^1' x.csv; then {code}; else echo 5,6 > y.csv; echo result: 5 6; fi"
    box = shell(code, scratch=tmp_path, **settings)
    x = np.array([[0.0, 0], [1, 0]])
    with pytest.raises(RowFailedError, match=r"row 1 failed") as caught:
        box(x)
    for word in words:
        assert word in str(caught.value)
    box.failures = "keep"
    assert np.isnan(box(x)).tolist() == [[False] * 2, [True] * 2]
    assert not any(tmp_path.iterdir())


def test_a_run_beyond_its_time_counts_as_timed_out_and_not_as_raised():
    box = shell("if grep -q '^1' x.csv; then sleep 60; else exit 3; fi", timeout=0.3, failures="keep")
    box(np.array([[0.0, 0], [1, 0]]))
    assert box.ledger.failures() == {"raised": 1, "timed_out": 1}
    assert box.ledger.causes == {"RuntimeError": 1, "timed_out": 1}


def test_numbers_that_an_integer_output_cannot_hold_fail_the_row():
    outputs = (ArraySpec("y", (), "uint8"),)
    assert shell("echo 255 > y.csv", outputs=outputs)(np.zeros(2)) == 255
    for number in ("256", "-1", "1.5"):
        with pytest.raises(RowFailedError):
            shell(f"echo {number} > y.csv", outputs=outputs)(np.zeros(2))


def test_the_folder_of_a_failed_run_is_kept_on_request_and_named(tmp_path):
    box = shell("echo half > log; exit 4", scratch=tmp_path, keep_failed=True)
    with pytest.raises(RowFailedError) as caught:
        box(np.zeros(2))
    (folder,) = tmp_path.iterdir()
    assert f"The run's folder: {folder}" in str(caught.value)
    assert (folder / "log").read_text() == "half\n"
    assert (folder / "x.csv").read_text() == "0,0\n"


# --- nothing is expanded, nothing is shared


def test_no_shell_sees_the_arguments(tmp_path):
    words = [
        "$HOME",
        "`touch bad`",
        "$(touch bad)",
        "a;touch bad",
        "* ?",
        "a\nb",
        "~",
        "{velocity}",
        "|&<>'\"",
    ]
    code = f"import json, sys; json.dump(sys.argv[1:], open('{tmp_path}/seen', 'w'))\n"
    code += "import os; assert sorted(os.listdir()) == ['stderr.txt', 'stdout.txt', 'x.npy']\n"
    code += "open('y.csv', 'w').write('1,2')"
    box = CommandLine([sys.executable, "-c", code, *words, "{x[0]}"], X, Y, output_files={"y": "y.csv"},
                      input_files={"x": "x.npy"})  # fmt: skip
    box(np.array([-0.5, 1.0]))
    assert json.loads((tmp_path / "seen").read_text()) == [*words, "-0.5"]


def test_the_environment_is_ours_and_what_is_set(monkeypatch):
    monkeypatch.setenv("TOKEN", "7")
    monkeypatch.setenv("SEEN", "3")
    code = 'echo "${TOKEN:-0},${SEEN:-0}" > y.csv'
    assert shell(code)(np.zeros(2)).tolist() == [7, 3]
    assert shell(code, environment={"SEEN": "4"})(np.zeros(2)).tolist() == [7, 4]
    assert os.environ["SEEN"] == "3"


def test_threads_run_side_by_side_each_in_its_own_folder(tmp_path):
    # every run waits until all four are there: one after the other they would wait for ever
    code = (
        f"touch {tmp_path}/$(tr , - < x.csv); while [ $(ls {tmp_path} | wc -l) -lt 4 ]; do sleep 0.01; done; "
    )
    box = shell(code + "cp x.csv y.csv", timeout=60)
    x = [np.array([row, 0.5]) for row in range(4)]
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(box, x))
    np.testing.assert_array_equal(np.stack(given), np.stack(x))
    assert box.ledger.rows_run == 4


def test_rows_are_spread_over_threads_by_parallel(tmp_path):
    # four runs wait for each other: one at a time would come to the timeout
    code = (
        f"touch {tmp_path}/$(tr , - < x.csv); while [ $(ls {tmp_path} | wc -l) -lt 4 ]; do sleep 0.01; done; "
    )
    box = shell(code + "cp x.csv y.csv", timeout=60)
    x = np.arange(8.0).reshape(4, 2)
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(Parallel(box, pool)(x), x)


def test_a_copy_in_another_process_runs_the_same(script):
    box = pickle.loads(pickle.dumps(python(script, "x.npy", "y.npy", timeout=30)))
    x = torch.randn(1, 2, dtype=torch.float64)
    torch.testing.assert_close(box(x), function(x))
    template = shell("exit 1", input_files=None, input_templates=CASE)
    assert identity(pickle.loads(pickle.dumps(template))) == identity(template)


def test_its_identity_follows_arguments_templates_and_the_content_of_files(tmp_path, script):
    first = identity(python(script))
    assert identity(python(script, timeout=5, keep_failed=True)) == first
    assert identity(python(script, vectorized=True)) != first
    assert identity(python(script, environment={"MODEL": "k-omega"})) != first
    (tmp_path / "case").mkdir()
    with_case = python(script, copies={"case": tmp_path / "case"})
    empty = identity(with_case)
    (tmp_path / "case" / "mesh").write_text("fine")
    assert len({first, empty, identity(with_case)}) == 3
    script.write_text(SCRIPT + "\n# changed")
    assert identity(python(script)) != first


def test_statuses_and_words_say_which_runs_have_failed():
    code = "cp x.csv y.csv; grep -q '^1' x.csv && echo 'it 7: ERROR in mesh' >&2; "
    code += "grep -q '^2' x.csv && exit 3; exit 1"
    rows = np.array([[0.5, 0.0], [1.0, 0.0], [2.0, 0.0]])
    box = shell(code, statuses=(0, 1), fails_if="ERROR", failures="keep")
    np.testing.assert_array_equal(box(rows)[:, 0], [0.5, np.nan, np.nan])
    assert "stderr.txt has 'ERROR', which is in fails_if: it 7: ERROR in mesh" in box.ledger.first_failure
    np.testing.assert_array_equal(shell(code, statuses=[1], failures="keep")(rows)[:, 0], [0.5, 1, np.nan])
    np.testing.assert_array_equal(shell(code, failures="keep")(rows)[:, 0], [np.nan] * 3)
    kinds = [
        shell(code),
        shell(code, statuses=(0, 1)),
        shell(code, fails_if="ERROR"),
        shell(code, fails_if=["E"]),
    ]
    assert len(set(map(identity, kinds))) == 4
    assert identity(shell(code, statuses=[0], fails_if=[])) == identity(shell(code))


def test_words_that_mean_failure_are_found_in_the_files_that_templates_read():
    code = "printf 'y 1 2\\n** Severe ** diverged\\n' > run.err"
    settings = {"output_files": None, "output_templates": {"run.err": "y {y}"}}
    assert shell(code, **settings)(np.zeros(2)).tolist() == [1, 2]
    with pytest.raises(RowFailedError, match=r"run.err has '\*\* Severe'"):
        shell(code, fails_if=["FATAL", "** Severe"], **settings)(np.zeros(2))


SHARED = "if grep -q '^9' x.csv; then :; else sleep 0.01; cp x.csv {0}/all.csv; fi; "


@pytest.mark.parametrize(
    ("take", "truth"),
    [
        ("mv {0}/all.csv y.csv", [1, 2, np.nan, 3]),
        ("cp -p {0}/all.csv y.csv", [1, 2, np.nan, 3]),
        ("ln {0}/all.csv y.csv", [1, 2, np.nan, 3]),
        ("cd {0}; tar cf - all.csv | tar xf - -C $OLDPWD; cd $OLDPWD; mv all.csv y.csv", [1, 2, None, 3]),
        ("ln -s {0}/all.csv y.csv", [np.nan] * 4),
    ],
)
def test_a_file_that_a_run_did_not_write_is_not_its_answer(tmp_path, take, truth):
    rows = np.array([[1.0, 0.0], [2.0, 0.0], [9.0, 0.0], [3.0, 0.0]])
    got = shell((SHARED + take).format(tmp_path), failures="keep")(rows)[:, 0]
    for value, right in zip(got, truth, strict=True):
        assert right is None or value == right or (np.isnan(value) and np.isnan(right))


@pytest.mark.slow
def test_a_check_finds_rows_that_have_the_answer_of_the_row_before(tmp_path):
    """A plain `cp` within a script makes a new file, which nothing tells from the run's own."""
    script = tmp_path / "run.sh"
    script.write_text((SHARED + "cp {0}/all.csv y.csv").format(tmp_path))
    box = CommandLine(
        ["sh", script], X, Y, input_files={"x": "x.csv"}, output_files={"y": "y.csv"}, failures="keep"
    )
    rows = np.linspace([1.0, 0.0], [9.0, 1.0], 8)
    assert box(rows)[-1].tolist() == box(rows)[-2].tolist()
    report = check_black_box(box, (rows,), rows=120, processes=False)
    assert {"row order", "memory"} & {fault.check for fault in report.faults}, report


def test_a_file_with_the_time_of_an_archive_is_a_run_s_own():
    """Whole seconds of now are less than now."""
    for step in ("1", "2"):
        code = f"cp x.csv y.csv; touch -d @$(($(date +%s) / {step} * {step})) y.csv"
        assert shell(code)(np.array([1.0, 2.0])).tolist() == [1, 2]


def test_one_folder_for_the_results_of_all_runs_is_refused(tmp_path):
    for take in (f"cp {tmp_path}/y.csv .", f"solver --out={tmp_path}/y.csv; cat '{tmp_path}/y.csv' > y.csv"):
        with pytest.raises(ConfigurationError, match=r"its own folder, got .*y.csv', which all runs share"):
            shell(take)
    with pytest.raises(ConfigurationError, match="which all runs share"):
        CommandLine(["sh", "-c", ": {x}"], X, Y, output_files={"y": "new/y.csv"},
                    input_templates={"case": f"x = {{x}}\nout: {tmp_path}/y.csv\n"})  # fmt: skip
    shell(f"cp x.csv y.csv; : {tmp_path}/my.csv {tmp_path}/y.csv.old ./y.csv out/y.csv /no-such-folder/y.csv")


def test_numbers_have_points_whatever_our_locale_is(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    code = 'echo "y $([ "$LC_ALL" = C.UTF-8 ] && echo 1 || echo 0) 2" > y.txt'
    settings = {"output_files": None, "output_templates": {"y.txt": "y {y}"}}
    assert shell(code, **settings)(np.zeros(2)).tolist() == [1, 2]
    for name in ("LC_ALL", "LANG", "LC_NUMERIC"):  # told otherwise
        assert shell(code, environment={name: "de_DE.UTF-8"}, **settings)(np.zeros(2)).tolist() == [0, 2]
    assert os.environ["LC_ALL"] == "de_DE.UTF-8"


# --- what is wrong is refused when the box is made

WRONG = [  # (settings, words of the message)
    ({"arguments": "sh -c true"}, ["a list of the program and its arguments", "no shell"]),
    ({"arguments": []}, ["a list of the program"]),
    ({"arguments": ["no-such-program"]}, ["a program that can be run", "'no-such-program'"]),
    ({"arguments": ["./not-made"]}, ["got './not-made'. There is no such file: build the program first"]),
    ({"arguments": ["sh", Path("nowhere.py")]}, ["arguments[1]", "a path that exists", "nowhere.py"]),
    ({"arguments": ["sh", 3]}, ["arguments[1]", "text or a path, got 3"]),
    ({"arguments": ["sh", "a\0b"]}, ["arguments[1]"]),
    ({"arguments": ["sh", "{x[2]}"]}, ["arguments[1]", "{x[2]}"]),
    ({"input_files": None}, ["input 'x'", "some way to the program", "input_templates"]),
    ({"copies": ["a.txt"]}, ["CommandLine, copies", "a mapping by the file's name", "['a.txt']"]),
    ({"input_templates": ["a"]}, ["CommandLine, input_templates", "a mapping by the file's name", "['a']"]),
    ({"output_files": None}, ["output 'y'", "one file to be read from"]),
    ({"output_templates": RESULT}, ["output 'y'", "got 2"]),
    ({"input_files": {"z": "z.npy"}}, ["input_files", "names among x", "'z'"]),
    ({"input_files": {"x": "../x.npy"}}, ["run's own folder", "'../x.npy'", "without '..'"]),
    ({"input_files": {"x": "/etc/x.npy"}}, ["run's own folder"]),
    ({"input_files": {"x": 3}}, ["run's own folder"]),
    ({"output_files": {"y": "a/../../y.npy"}}, ["run's own folder"]),
    ({"output_files": {"y": "/etc/passwd"}}, ["run's own folder"]),
    ({"input_templates": {"../case": "{x}"}}, ["input_templates", "run's own folder"]),
    ({"output_templates": {"/var/log/syslog": "{y}"}, "output_files": None}, ["run's own folder"]),
    ({"copies": {"../mesh": "."}}, ["copies", "run's own folder"]),
    ({"copies": {"mesh": "no-mesh"}}, ["copies, 'mesh'", "exists"]),
    ({"input_files": {"x": "x.mat"}}, ["ends in one of .npy", "'x.mat'", "template"]),
    ({"output_files": {"y": "y.npy:place"}}, ["a place in an HDF5 file, or a column"]),
    ({"input_files": {"x": "y.csv"}}, ["other files for inputs than for outputs", "'y.csv'"]),
    ({"input_files": {"x": "stdout.txt"}}, ["stdout.txt"]),
    ({"input_templates": {"x.csv": "{x}"}}, ["files of their own", "'x.csv'"]),
    ({"input_templates": {"case": "nothing"}}, ["a placeholder such as {x}"]),
    ({"input_templates": {"case": Path("nowhere")}}, ["a path that exists"]),
    (
        {"vectorized": True, "input_templates": {"case": "{x}"}},
        ["no placeholder with vectorized=True", "{x}"],
    ),
    ({"vectorized": True, "arguments": ["sh", "{x}"]}, ["arguments[1]", "no placeholder"]),
    ({"output_templates": {"a": "{y[0]}"}, "output_files": None}, ["each of its numbers once"]),
    ({"timeout": 0}, ["CommandLine, timeout", "> 0, got 0"]),
    ({"statuses": (0, 256)}, ["CommandLine, statuses", "from 0 to 255", "(0, 256)"]),
    ({"statuses": ()}, ["CommandLine, statuses", "(0, 1)"]),
    ({"statuses": (0, -9)}, ["CommandLine, statuses"]),
    ({"statuses": 1}, ["CommandLine, statuses", "got 1. Write (0, 1)"]),
    ({"fails_if": ""}, ["CommandLine, fails_if", "words that a failed run prints"]),
    ({"fails_if": ["ERROR", 3]}, ["CommandLine, fails_if", "['ERROR', 3]"]),
    ({"timeout": math.nan}, ["timeout"]),
    ({"max_rows": 0}, ["max_rows"]),
    ({"scratch": "no/such/folder"}, ["scratch", "exists"]),
]


@pytest.mark.parametrize("settings, words", WRONG, ids=[str(settings)[:60] for settings, _ in WRONG])
def test_wrong_settings_are_refused(settings, words):
    good = {"arguments": ["sh"], "input_files": {"x": "x.csv"}, "output_files": {"y": "y.csv"}}
    with suppress_type_checks(), pytest.raises(ConfigurationError) as caught:
        CommandLine(inputs=X, outputs=Y, **(good | settings))
    for word in words:
        assert word in str(caught.value)


def test_two_arrays_take_two_files_or_one_hdf5_file():
    pair = (ArraySpec("u", ()), ArraySpec("v", ()))
    with pytest.raises(ConfigurationError, match=r"a file for each array, got 'a.npy' for 'u' and 'v'"):
        shell("true", inputs=pair, input_files={"u": "a.npy", "v": "a.npy"})
    with pytest.raises(ConfigurationError, match=r"a file for each array"):
        shell("true", inputs=pair, input_files={"u": "a.h5:v", "v": "a.h5"})
    shell("true", inputs=pair, input_files={"u": "a.h5", "v": "a.h5"})


SIZES = (ArraySpec("width", ()), ArraySpec("height", ()))
MISSPELT = [  # (settings, words of the message)
    (
        {"input_templates": {"case": "w = {width}\nh = {hieght:.3f}\n"}},
        ["input 'height'", "There is {hieght}, which names no array", "mean 'height'"],
    ),
    ({"input_templates": {"case": "h = {hieght}"}}, ["case", "There is {hieght}", "mean 'height'"]),
    ({"arguments": ["sh", "{width}", "-h{hieght[0]}"]}, ["input 'height'", "There is {hieght}"]),
    ({"arguments": ["sh", "{width}"]}, ["got none. Name it in input_files"]),
    (
        {"input_files": {"width": "w.csv", "height": "h.csv"}, "output_files": {},
         "output_templates": {"out": "{Y}"}},
        ["output_templates, 'out'", "There is {Y}", "The names are y"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("settings, words", MISSPELT)
def test_a_misspelt_placeholder_is_named_with_what_it_may_mean(settings, words):
    with pytest.raises(ConfigurationError) as caught:
        CommandLine(
            **({"arguments": ["sh"], "output_files": {"y": "y.csv"}} | settings), inputs=SIZES, outputs=Y
        )
    for word in words:
        assert word in str(caught.value)


def first_number(path):
    return float(path.read_text().split()[0])


def second_number(path):
    return float(path.read_text().split()[1])


def test_two_outputs_are_read_from_one_file_by_two_functions():
    pair = (ArraySpec("a", ()), ArraySpec("b", ()))
    both = {"a": ("out", first_number), "b": ("out", second_number)}
    box = shell("tr , ' ' < x.csv > out", outputs=pair, output_files=both)
    x = np.array([[1.5, 2.5], [3.0, -1.0]])
    np.testing.assert_array_equal(box(x), x.T)
    whole = {"a": "out.csv", "b": "out.csv"}
    for files in (whole, both | {"b": "out"}, {"a": "out.csv", "b": ("out.csv", second_number)}):
        with pytest.raises(ConfigurationError):
            shell("true", outputs=pair, output_files=files)
    with pytest.raises(ConfigurationError, match=r"a file for each.*or \(file, function\) for each"):
        shell("true", outputs=pair, output_files=whole)
    with pytest.raises(ConfigurationError, match=r"a file for each"):  # the second would write over the first
        shell("true", inputs=pair, input_files={"a": ("in", np.save), "b": ("in", np.save)})


def test_wrong_specs_are_refused():
    with pytest.raises(DefinitionError, match=r"CommandLine.inputs"):
        shell("true", inputs=())
