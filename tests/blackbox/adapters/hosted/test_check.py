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


@pytest.mark.parametrize("shape", [(), (2,), (2, 1)])
def test_a_result_of_any_shape(shape):
    def program(case, host):
        x = np.array([1.0 + case, 2.0])
        for _ in range(3 + case):
            x = 0.9 * x + host.exchange("closure", x)
        host.output("last", x[0] if shape == () else x.reshape(shape))

    host = Hosted(program, calls=[Call("closure", sees=X, gives=U)], outputs=[ArraySpec("last", shape)])
    found = verdicts(host)
    assert found["side by side"] is Verdict.OK and Verdict.FAULT not in found.values()


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


def rates(x, u):
    return np.array([np.sin(x[0] + x[1]) - 0.3 * x[0] + u[0], np.cos(x[0]) * u[1] - 0.5 * x[1]])


def runge_kutta(case, host):
    """The classical scheme, which asks in each of four stages."""
    x, step = np.array([1.0 + case, 0.5]), 0.1
    for _ in range(10):
        a = rates(x, host.exchange("closure", x))
        y = x + step / 2 * a
        b = rates(y, host.exchange("closure", y))
        y = x + step / 2 * b
        c = rates(y, host.exchange("closure", y))
        y = x + step * c
        d = rates(y, host.exchange("closure", y))
        x = x + step / 6 * (a + 2 * b + 2 * c + d)


def midpoint(case, host):
    x, step = np.array([1.0 + case, 0.5]), 0.1
    for _ in range(10):
        half = x + step / 2 * rates(x, host.exchange("closure", x))
        x = x + step * rates(half, host.exchange("closure", half))


def lagged(direct, slow):
    """A share of each answer acts at once, and the rest by a lag that the program keeps."""

    def program(case, host):
        x, kept = np.array([1.0 + case, 0.5]), np.zeros(2)
        for _ in range(20):
            u = host.exchange("closure", x)
            kept = kept + (u - kept) / slow
            x = x + 0.1 * rates(x, direct * u + (1 - direct) * kept)

    return program


def two_steps(case, host):
    """Adams-Bashforth, which keeps the rates of the step before."""
    x, before = np.array([1.0 + case, 0.5]), None
    for _ in range(20):
        now = rates(x, host.exchange("closure", x))
        x = x + 0.1 * (now if before is None else 1.5 * now - 0.5 * before)
        before = now


def single(case, host):
    """A program of single precision, whose small steps are near what it rounds to."""
    x = np.array([1.0 + case, 0.5], np.float32)
    for _ in range(20):
        u = host.exchange("closure", x)
        x = (x + np.float32(0.001) * rates(x, u)).astype(np.float32)


def late(case, host):
    """Goes by no answer before the fourth."""
    x = np.array([1.0 + case, 0.5])
    for step in range(20):
        x = x + 0.1 * rates(x, host.exchange("closure", x) * (step > 2))


SINGLE = {"sees": ArraySpec("x", (2,), "float32"), "gives": ArraySpec("u", (2,), "float32")}


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize(
    ("program", "call", "calls", "expected"),
    [
        *((midpoint, {}, calls, Verdict.WARNING) for calls in (7, 8, 9)),
        (midpoint, {"stages": 2}, 8, Verdict.OK),
        *((runge_kutta, {}, calls, Verdict.WARNING) for calls in (8, 9, 10, 11)),
        (runge_kutta, {"stages": 2}, None, Verdict.WARNING),
        *((runge_kutta, {"stages": 4, "memory": memory}, None, Verdict.OK) for memory in (0, None)),
        *((lagged(direct, 2), {}, None, Verdict.WARNING) for direct in (0, 0.5, 0.9)),
        *((lagged(direct, 10), {}, None, Verdict.WARNING) for direct in (0, 0.5, 0.8)),
        (lagged(1, 10), {}, None, Verdict.OK),
        (two_steps, {}, None, Verdict.WARNING),
        (two_steps, {"memory": 1}, None, Verdict.OK),
        (single, {}, None, Verdict.OK),
        (single, SINGLE, None, Verdict.OK),
        (late, {}, None, Verdict.OK),
    ],
)
def test_what_a_program_keeps_is_found_wherever_it_is_looked_for(program, call, calls, expected):
    host = Hosted(program, calls=[Call("closure", **{"sees": X, "gives": U} | call)])
    report = check_host(host, [0, 1], calls=calls)
    assert report.finding("answers").verdict is Verdict.OK
    assert report.finding("state").verdict is expected


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("count", "calls", "expected"), [(9, 8, Verdict.SKIPPED), (9, None, Verdict.OK), (20, None, Verdict.OK)]
)
def test_a_program_that_asks_for_each_of_its_columns_is_asked_for_all(count, calls, expected):
    """What is answered for a column shows at the next step, when it is asked for again."""

    def columns(case, host):
        x = np.random.default_rng(case).standard_normal((count, 12))
        for _ in range(4):
            x = 0.9 * x + 0.1 * np.array([host.exchange("closure", column) for column in x])

    spec = ArraySpec("x", (12,)), ArraySpec("u", (12,))  # too many numbers to look at one by one
    host = Hosted(columns, calls=[Call("closure", *spec, stages=count)])
    finding = check_host(host, [0, 1], calls=calls).finding("answers")
    assert finding.verdict is expected
    assert expected is Verdict.OK or "a round has 9 calls" in finding.sentence


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("acts", "verdict", "words"),
    [
        (lambda u: u > 0, Verdict.WARNING, "goes by a threshold"),
        (np.round, Verdict.WARNING, "rounds it"),
        (lambda u: np.clip(u, -1e-3, 1e-3), Verdict.WARNING, "goes by a threshold"),
        (lambda u: 0 * u, Verdict.FAULT, "See that the program uses it"),
    ],
)
def test_what_goes_by_a_threshold_uses_its_answers(acts, verdict, words):
    def relay(case, host):
        x = 15.0 + case
        for _ in range(20):
            x = x + 0.1 * (10 - x) + float(acts(host.exchange("closure", x)))

    host = Hosted(relay, calls=[Call("closure", ArraySpec("x", ()), ArraySpec("u", ()))])
    finding = check_host(host, [0, 1]).finding("answers")
    assert finding.verdict is verdict and words in finding.sentence


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
    count = os.path.getsize(path) if os.path.exists(path) else 0
    with open(path, "a") as file: file.write("x")  # no other finds half of it
    x[0] += count
    bb_host.exchange("closure", x)
    """
    assert verdicts(hosted(tmp_path, text))["repeats"] is Verdict.FAULT


def test_a_program_that_fails(tmp_path):
    report = check_host(hosted(tmp_path, "sys.exit('no licence')"))
    assert report.finding("runs").verdict is Verdict.FAULT and "no licence" in str(report)


@pytest.mark.parametrize(("sound", "check"), [(9, "answers"), (12, "state")])
def test_a_program_that_fails_with_other_answers_only(sound, check):
    begun = []

    def blows_up(case, host):
        begun.append(case)
        fails, x = len(begun) > sound, np.array([1.0 + case, 0.5])
        for step in range(20):
            x = 0.9 * x + 0.1 * np.sin(host.exchange("closure", x))
            if fails and step == 3:
                raise ValueError("CFL violated")

    host = Hosted(blows_up, calls=[Call("closure", X, U)], failures="keep")
    finding = check_host(host).finding(check)
    assert finding.verdict is Verdict.FAULT
    assert "A run with other answers failed" in finding.sentence and "CFL violated" in finding.sentence
    assert "scale=" in finding.sentence and host.failures == "keep"


@pytest.mark.parametrize("same", [None, 0])
def test_memory_is_advised_where_it_may_be_declared(same):
    host = Hosted(two_steps, calls=[Call("closure", X, U, same=same)])
    finding = check_host(host, [0, 1]).finding("state")
    assert finding.verdict is Verdict.WARNING and "Send what the program goes by" in finding.sentence
    for declared in ("memory=", "stages="):
        assert (declared in finding.sentence) == (same is None)


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
