"""The check of programs that call the network, on programs that are right and on those that are not."""

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.conformance import Verdict, check_host
from tests.blackbox.adapters.hosted.programs import BEGIN, LINEAR, STEP, U, X, hosted


def verdicts(host, **settings):
    return {finding.check: finding.verdict for finding in check_host(host, **settings).findings}


@pytest.mark.slow
def test_a_program_that_is_right(tmp_path):
    report = check_host(hosted(tmp_path, LINEAR, arguments=["20"]))
    assert not report.faults and not report.warnings
    assert {f.check: f.verdict for f in report.findings}["state"] is Verdict.OK


NONLINEAR = f"""
import math
{BEGIN}
for _ in range(20):
    u = bb_host.exchange("closure", x)
    x = doubles(math.sin(x[0] + x[1]) + u[0], math.cos(x[0]) * u[1] + 0.5 * x[1])
"""
STAGES = f"""
{BEGIN}
for _ in range(10):
    k = bb_host.exchange("closure", x)
    l = bb_host.exchange("closure", doubles(2 * k[0], 2 * k[1]))
    x = doubles(*(0.9 * x[i] + 0.5 * (k[i] + l[i]) for i in range(2)))
"""
HIDDEN = f"""
{BEGIN}
inside = 0.0
for _ in range(20):
    u = bb_host.exchange("closure", x)
    inside = 0.7 * inside + u[0] * u[1]
    x = doubles(0.5 * x[0] + inside, 0.4 * x[1] + u[1])
"""


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("text", "call", "expected"),
    [
        (NONLINEAR, {}, Verdict.OK),
        (STAGES, {}, Verdict.WARNING),
        (STAGES, {"stages": 2}, Verdict.OK),
        (HIDDEN, {}, Verdict.WARNING),
    ],
)
def test_whether_a_call_shows_the_state(tmp_path, text, call, expected):
    host = hosted(tmp_path, text, [Call("closure", sees=X, gives=U, **call)])
    assert verdicts(host, calls=10)["state"] is expected


@pytest.mark.slow
def test_an_answer_that_is_not_used(tmp_path):
    report = check_host(hosted(tmp_path, LINEAR.replace(STEP, "x[0] = 0.5 * x[0]")))
    assert report.finding("answers").verdict is Verdict.FAULT
    assert "'closure'" in report.finding("answers").sentence


def test_runs_that_share_a_file(tmp_path):
    shared = tmp_path / "shared"
    text = f"""
    {BEGIN}
    path = {str(shared)!r}
    count = int(open(path).read()) if os.path.exists(path) else 0
    open(path, "w").write(str(count + 1))
    x[0] += count
    bb_host.exchange("closure", x)
    """
    assert verdicts(hosted(tmp_path, text))["repeats"] is Verdict.FAULT


def test_a_program_that_fails(tmp_path):
    report = check_host(hosted(tmp_path, "sys.exit('no licence')"))
    assert report.finding("runs").verdict is Verdict.FAULT and "no licence" in str(report)


@pytest.mark.slow
def test_several_calls(tmp_path):
    text = """
    a, b = 1.0 + case, 2.0
    for step in range(20):
        a = 0.9 * a + bb_host.exchange("momentum", doubles(a))[0]
        b = 0.8 * b + a * bb_host.exchange("heat", doubles(b))[0]
    """
    calls = [Call(n, sees=ArraySpec("x", (1,)), gives=ArraySpec("d", (1,))) for n in ("momentum", "heat")]
    assert verdicts(hosted(tmp_path, text, calls), calls=16)["state"] is Verdict.OK


def test_a_line_of_cells_that_does_not_say_so():
    def program(case, host):
        x = np.random.default_rng(case).standard_normal(16)
        for _ in range(4):
            x = 0.9 * x + 0.1 * np.roll(x, 1) + host.exchange("closure", x)
            x = 0.9 * x + 0.1 * np.roll(x, 1)

    spec = ArraySpec("x", (16,)), ArraySpec("u", (16,))
    told = check_host(Hosted(program, calls=[Call("closure", *spec)]), calls=3).finding("layout")
    assert told.verdict is Verdict.WARNING and "Grid(periodic=True)" in told.sentence
