"""`blackbox sample` as a user meets it: a plan, draws, a report; stopped or killed, it goes on to the bit."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import CheckpointWarning
from tasks.report import posterior_page
from zo.posterior.inference_data import arviz

ROOT = Path(__file__).parents[2]
OWN = '''
import time

import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents.models.values import ValueTangent

DATA = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)


class Squares(BlackBoxFunction):
    inputs = (ArraySpec("x", shape=(2,), dtype="float64"),)
    outputs = (ArraySpec("y", shape=(3,), dtype="float64"),)

    def evaluate_rows(self, x):
        time.sleep(PAUSE)
        y = torch.as_tensor(x)
        y = torch.stack([y[:, 0] + 0.5 * y[:, 1] ** 2, y[:, 1], y[:, 0] * y[:, 1]], 1)
        y[y[:, 0] > 1.6] = torch.nan
        return y.numpy()


class Quadratic(ValueTangent):  # exact, and quick
    knows = True

    def __init__(self):
        super().__init__(1, False)

    def __repr__(self):
        return "Quadratic()"

    def within(self, z, others):
        return self.values(z, others)

    def learn_from_window(self):
        pass

    def terms(self, x):
        return torch.cat([torch.ones_like(x[:, :1]), x, x.square(), x[:, :1] * x[:, 1:]], 1)

    def fit(self, x, y):
        self.weights = torch.linalg.lstsq(self.terms(x), y, driver="gels").solution  # gelsy varies in bits

    def values(self, x, fixed):
        return self.terms(x) @ self.weights


class Bent(tasks.Posterior):
    """Two unknowns of a bent line."""

    unknowns = ("first", "second")

    def box(self):
        return Squares(failures="keep")

    def potential(self, x, y):
        return (2 * (y - DATA)).square().sum(1) / 2 + x.square().sum(1) / 2

    def start(self, rows, generator):
        return torch.randn(rows, 2, dtype=torch.float64, generator=generator) / 2

    def tangent(self):
        return Quadratic()
'''.replace("PAUSE", "0.0")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the problem's file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bent.py").write_text(OWN, encoding="utf-8")
    return tmp_path


def sampling(*words):
    return ["sample", "bent.py", "--rows", "300", "--chains", "4", *words]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where a sampling was done, and what it said."""
    from tasks.command import cli

    place = tmp_path_factory.mktemp("whole")
    (place / "bent.py").write_text(OWN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(place)
        assert cli.main(sampling()) == 0
    return place, said.getvalue()


@pytest.fixture
def here(place, whole):
    """A copy of its folder, beside the problem's file."""
    (folder,) = (whole[0] / "runs").iterdir()
    return shutil.copytree(folder, place / "here")


def test_a_posterior_is_drawn_into_a_folder_with_a_report(whole):
    place, said = whole
    (folder,) = (place / "runs").iterdir()
    plan = said.splitlines()[:2]
    assert plan[0] == (
        "bent: 2 unknowns, 300 rows of Squares: 60 to learn where the posterior lies, then 59 proposals of "
        "each of 4 chains."
    )
    assert str(folder.relative_to(place)) in plan[1] and f"--out runs/{folder.name}" in plan[1]
    assert "effective samples" in said and f"Report: runs/{folder.name}/report.html" in said
    data = arviz().from_netcdf(folder / "posterior.nc")
    assert data.posterior["x"].dims == ("chain", "draw", "unknown")
    assert data.posterior["unknown"].values.tolist() == ["first", "second"]
    assert data.posterior.sizes["draw"] == 59 - 59 // 10 and data.attrs["rows"] == 60 + 2 + 59 * 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    rows = int(data.attrs["rows_failed"])
    assert rows > 0 and "Two unknowns of a bent line." in page and page.count("data:image/png") == 4
    assert f"{rows:,} of all rows failed" in page and "R-hat is" in page and "Why rows failed" in page
    least = arviz().ess(data)["x"].values.min()
    assert f"{least:,.0f} effective samples of " in page
    assert not list(folder.glob(".*.part"))


def test_more_rows_prolong_a_sampling_whose_code_may_have_changed(toy, place, here, capsys):
    before = arviz().from_netcdf(here / "posterior.nc").posterior["x"].values
    with open(place / "bent.py", "a", encoding="utf-8") as stream:
        stream.write("# another word\n")
    sys.modules.pop("bent")
    with pytest.warns(CheckpointWarning, match=r"changed since the sampling began: bent\.py"):
        assert toy("sample", "bent.py", "--rows", "400", "--chains", "4", "--out", "here") == 0
    assert "goes on from where it was" in capsys.readouterr().out
    after = arviz().from_netcdf(here / "posterior.nc").posterior["x"].values
    assert after.shape[1] > before.shape[1]
    assert np.array_equal(after[:, : before.shape[1] - 3], before[:, 3:])


def test_fewer_rows_than_there_are_say_that_the_draws_are_those_of_before(toy, place, here, capsys):
    before = arviz().from_netcdf(here / "posterior.nc").posterior["x"].values
    assert toy("sample", "bent.py", "--rows", "200", "--chains", "4", "--out", "here") == 0
    said = capsys.readouterr().out
    assert "has 298 of 200 rows already: none was run" in said
    assert np.array_equal(arviz().from_netcdf(here / "posterior.nc").posterior["x"].values, before)


def test_a_folder_from_elsewhere_names_no_code_that_is_executed(toy, place, here, capsys):
    """What is drawn from is on the command line alone; links in a folder lead nowhere."""
    (place / "evil.py").write_text("from pathlib import Path\nPath('done').touch()\n" + OWN, encoding="utf-8")
    begun = json.loads((here / "sampling.json").read_text())
    begun["problem"] = f"{place / 'evil.py'}:Bent"
    (here / "sampling.json").write_text(json.dumps(begun))
    assert toy(*sampling("--out", "here")) == 0 and not (place / "done").exists()
    (here / "link").symlink_to(place / "bent.py")
    assert toy(*sampling("--out", "here")) == 2
    assert "got a link" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (("--seed", "1"), None, "seed=1"),
        (("--learn", "70"), None, "--learn"),
        ((), ("x.square().sum(1) / 2", "x.square().sum(1)"), "the potential that"),
        ((), ("y[:, 1] ** 2", "y[:, 1] ** 3"), "the box that"),
    ],
)
def test_another_sampling_is_refused_in_a_folder_that_was_begun(toy, place, capsys, words, change, said):
    if change is not None:
        (place / "bent.py").write_text(OWN.replace(*change), encoding="utf-8")
        sys.modules.pop("bent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.running.sampling_run.warn", lambda *_: None)
        assert toy("sample", "bent.py", "--rows", "400", "--chains", "4", "--out", "here", *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('return Squares(failures="keep")', "return 3"), "expected a BlackBoxFunction, got int"),
        (('("first", "second")', '("first",)'), "expected 2 names, got 1"),
        (("tasks.Posterior)", "tasks.Problem)"), "expected one subclass of tasks.Posterior"),
        (("randn(rows, 2", "randn(rows, 3"), "rows of 2 numbers"),
        (("/ 2 + x.square()", "/ 0 + x.square()"), "finite numbers at the start"),
    ],
)
def test_a_problem_that_cannot_be_drawn_from_leaves_no_folder(toy, place, capsys, change, said):
    (place / "bent.py").write_text(OWN.replace(*change), encoding="utf-8")
    assert change[0] in OWN
    assert toy(*sampling()) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (place / "runs").exists() or not list((place / "runs").iterdir())


def test_too_few_rows_are_refused_before_the_plan(toy, place, capsys):
    assert toy("sample", "bent.py", "--rows", "100", "--chains", "8") == 2
    said = capsys.readouterr()
    assert said.out == "" and "rows: expected at least 182, to learn from 20 and for 20 draws" in said.err
    assert not list((place / "runs").iterdir())


def test_a_folder_with_other_files_is_refused(toy, place, capsys):
    assert toy(*sampling("--out", ".")) == 2
    assert "expected an empty folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sampling_that_is_killed_or_stopped_goes_on_to_the_bit(place, how):
    slow = OWN.replace("time.sleep(0.0)", "time.sleep(0.1); open('calls', 'a').write('.')")
    (place / "bent.py").write_text(slow, encoding="utf-8")
    command = [sys.executable, ROOT / "blackbox_coupling.py", *sampling("--out")]
    quiet = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "whole"], cwd=place, env=quiet, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "part"], cwd=place, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while (place / "calls").stat().st_size < 65 + 5 + 35 and time.monotonic() < deadline:
        time.sleep(0.02)  # until 35 of the 59 proposals of each chain are made
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "Go on with: blackbox sample bent.py" in error
        part = arviz().from_netcdf(place / "part" / "posterior.nc")
        assert part.attrs["stopped"] == 1 and part.attrs["rows"] < 290
        assert "Stopped by the user" in (place / "part" / "report.html").read_text(encoding="utf-8")
    else:
        assert process.returncode == -how and not (place / "part" / "posterior.nc").exists()
    done = subprocess.run(
        [*command, "part"], cwd=place, env=quiet, check=True, capture_output=True, text=True
    )
    assert "goes on from where it was" in done.stdout
    whole, part = (arviz().from_netcdf(place / name / "posterior.nc") for name in ("whole", "part"))
    assert np.array_equal(whole.posterior["x"].values, part.posterior["x"].values)
    assert part.attrs["rows_run_by_ledger"] < whole.attrs["rows_run_by_ledger"] == whole.attrs["rows"]


ENDED = """if len(x) == 4 and "ENDS" in os.environ:  # one proposal of four chains
            left = int(os.environ.pop("ENDS"))
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                return torch.full((4, 3), torch.nan, dtype=torch.float64).numpy()
            os.environ["ENDS"] = str(left - 1)"""


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("proposal", [40, 0])
def test_rows_that_a_signal_ends_are_no_rejections(place, whole, monkeypatch, proposal):
    """A scheduler signals the box's programs with it: the proposal under way is made again."""
    from tasks.command import cli

    signalled = OWN.replace("time.sleep(0.0)", ENDED).replace("import time", "import os\nimport signal")
    (place / "bent.py").write_text(signalled, encoding="utf-8")
    monkeypatch.setenv("ENDS", str(proposal))
    assert cli.main(sampling("--out", "part")) == 130
    assert cli.main(sampling("--out", "part")) == 0
    (folder,) = (whole[0] / "runs").iterdir()
    x, undisturbed = (
        arviz().from_netcdf(f / "posterior.nc").posterior["x"].values for f in (place / "part", folder)
    )
    assert np.array_equal(x, undisturbed)


def test_a_command_of_runs_says_what_a_sampling_goes_on_by(toy, tmp_path, capsys):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "sampling.json").write_text("{}")
    assert toy("resume", "drawn") == 2
    assert "blackbox sample PROBLEM --rows N --out drawn" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_without_an_r_hat_is_not_told_as_mixed():
    """It is the same in all draws, so that ArviZ counts each of them as effective and has no R-hat."""
    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    draws[:, :, 1] = 3.0
    data = arviz().from_dict(
        posterior={"x": draws},
        sample_stats={"acceptance_rate": np.full((4, 500), 0.8), "diverging": np.zeros((4, 500), dtype=bool)},
        coords={"unknown": ["moved", "stuck"]},
        dims={"x": ["unknown"]},
        attrs={"stopped": 0, "rows": 3000, "rows_learned": 100, "rows_failed": 0},
    )
    said = " ".join(posterior_page.sentences(data, 3000))
    assert "R-hat is nan at most" in said and "Vehtari et al. (2021) ask for" in said
