"""`check_black_box`: samples, budgets, failing boxes, and what it leaves as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import ArraySpec, BlackBoxFunction, Budgeted
from blackbox.conformance import Report, Verdict, check_black_box, read_samples
from blackbox.conformance.concurrency import thread_safety
from blackbox.errors import ConfigurationError, InputError
from tests.blackbox.boxes import ErrorCase, error_table
from tests.blackbox.conformance.broken_boxes import (
    AlwaysFails,
    FailsHere,
    FirstIsAnother,
    Good,
    GoodInTorch,
    GoodRowByRow,
    NoGradient,
    NowAndThen,
    Seeding,
)
from tests.blackbox.conformance.probes import draws, probing


def check(box: Any, *samples: Any, **settings: Any) -> Report:
    return check_black_box(box, *samples, processes=False, **settings)


@suppress_type_checks
def wrong(box: Any = None, samples: Any = None, **settings: Any) -> Report:
    return check_black_box(Good() if box is None else box, samples, processes=False, **settings)


ERRORS = [
    ErrorCase("function", lambda: wrong(np.sin), ConfigurationError, ["box", "BlackBoxFunction", "ufunc"]),
    ErrorCase("rows", lambda: wrong(rows=0), ConfigurationError, ["rows", ">= 1", "got 0"]),
    ErrorCase("float-rows", lambda: wrong(rows=1e4), ConfigurationError, ["rows", "got 10000.0"]),
    ErrorCase("seconds", lambda: wrong(seconds=0), ConfigurationError, ["seconds", "got 0"]),
    ErrorCase("one-row", lambda: wrong(samples=draws(1, 3)), InputError, ["at least 2 rows", "(1,)"]),
    ErrorCase("no-leading", lambda: wrong(samples=draws(3)), InputError, ["one leading axis", "got ()"]),
    ErrorCase("nan", lambda: wrong(samples=draws(4, 3) * np.nan), InputError, ["'x'", "NaN", "Leave"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()


def test_samples_may_be_arrays_or_tensors_and_are_not_changed():
    samples = draws(40, 3)
    kept, tensor = samples.copy(), torch.from_numpy(samples.copy())
    for given in (samples, (samples,), [samples], tensor):
        assert not check(Good(), given, rows=600).faults
    assert np.array_equal(samples, kept) and np.array_equal(tensor.numpy(), kept)


def test_standard_draws_are_said_to_be_such():
    assert "samples of your problem say more" in check(Good(), rows=200).summary()
    assert "standard normal draws" not in check(Good(), draws(8, 3), rows=200).summary()


class Tube(BlackBoxFunction):
    """Two inputs whose units are a million apart; rows below a flow fail."""

    inputs = (ArraySpec("flow", (), scale=1e-3), ArraySpec("power", (), scale=1e3))
    outputs = (ArraySpec("heat", ()),)

    def evaluate_rows(self, flow, power):
        heat = np.sin(flow / 1e-3) + np.cos(power / 1e3)
        return np.where(flow < -2e-3, np.nan, heat)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("given", [True, False])
def test_inputs_in_units_a_million_apart_have_a_mu_each(given):
    random = np.random.default_rng(0)
    samples = [scale * random.uniform(-1, 1, 32).astype("float32") for scale in (1e-3, 1e3)]
    report = check_black_box(Tube(), samples if given else None, processes=False)
    assert not report.faults
    small, large = report.recommendations
    assert small.unit == large.unit == "scale"
    assert 0.5 < large.coordinates.central / small.coordinates.central < 2
    assert 1e-3 < small.coordinates.central < 1


def test_standard_draws_of_an_array_have_the_scale_of_each_number():
    seen: list[np.ndarray] = []

    class Plate(BlackBoxFunction):
        inputs = (ArraySpec("load", (2, 3), scale=[[1e-3, 1.0, 1e3]] * 2),)
        outputs = (ArraySpec("bending", ()),)

        def evaluate_rows(self, load):
            seen.append(np.asarray(load))
            return load.sum(axis=(1, 2))

    check_black_box(Plate(), rows=64, processes=False)
    sizes = np.abs(max(seen, key=len)).mean(axis=(0, 1))
    np.testing.assert_allclose(sizes, [1e-3, 1.0, 1e3], rtol=0.5)


def test_rows_that_fail_head_the_report_with_the_first_of_them():
    flow = np.full(200, 1e-3)
    flow[[70, 130]] = -5e-3
    places = np.unique(np.linspace(0, 199, 64).astype(int))
    flow[places[-1]] = -5e-3
    lost = int(np.isin([70, 130, 199], places).sum())
    first = next(place for place in (70, 130, 199) if place in places)
    report = check_black_box(Tube(), [flow, np.ones(200)], rows=300, processes=False)
    headline = report.summary()
    assert "64 of the 200 samples were taken" in headline
    assert f"\n{lost} of 64 rows failed: row {first} (flow=-0.005, power=1), output 'heat': " in headline
    assert "not measured" in headline and "Not measured:" in str(report).replace("\n", " ")


def test_where_all_rows_fail_one_sentence_says_why_and_what_to_give():
    class Deep(BlackBoxFunction):
        inputs = (ArraySpec("depth", ()), ArraySpec("flow", ()))
        outputs = (ArraySpec("drag", ()),)

        def evaluate(self, depth, flow):
            raise ValueError("expected a depth between 3 and 9 metres")

    report = check_black_box(Deep(), processes=False)
    text = " ".join(str(report).split())
    assert text.count("expected a depth between 3 and 9 metres") == 1
    assert "Inputs were standard normal draws: give rows of your problem" in text
    assert "--samples FILE.npz (with the arrays depth, flow)" in text
    assert "not measured " not in text.replace("14 lines not measured", "")
    assert {found.verdict for found in report.findings} == {Verdict.FAULT, Verdict.SKIPPED}
    said = check_black_box(Deep(), [np.ones(4), np.ones(4)], processes=False).summary()
    assert "Mend the box, or give samples" in said and "standard normal" not in said


def test_a_thousand_rows_measure_threads_processes_and_a_mu_of_each_of_two_inputs():
    processes = 4 * (1 + 2 * 3)  # four rows here, and three times in each of two
    report = check_black_box(Tube(), rows=1000 - processes, processes=False)
    for check in ("thread safety", "mu of 'flow'", "mu of 'power'", "smoothness"):
        assert report.finding(check).verdict is not Verdict.SKIPPED, check
    few = check_black_box(Tube(), rows=280, processes=False)
    assert few.finding("thread safety").verdict is Verdict.OK
    assert any("--rows 10000, in Python rows=10000" in found.sentence for found in few.of(Verdict.SKIPPED))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"rows": 1000},
            "Not tried in a call of 129 rows: take more, such as --rows 6000, in Python rows=6000.",
        ),
        ({"rows": 6000}, ""),
        ({"rows": None}, ""),
    ],
)
def test_a_large_call_that_does_not_fit_is_said(settings, words):
    sentence = check(Good(), **settings).finding("batch size").sentence
    assert (words in sentence) if words else sentence.endswith("(equal to the bit).")


def test_two_samples_are_enough():
    report = check(Good(), draws(2, 3))
    assert not report.faults
    assert report.recommendations


def test_numbers_without_a_derivative_are_not_moved():
    class Watching(GoodInTorch):
        def evaluate_rows(self, x: Any, scale: Any) -> Any:
            seen.update(scale.tolist())
            return super().evaluate_rows(x, scale)

    seen: set[float] = set()
    scale = np.linspace(1, 2, 8)
    check(Watching(), (draws(8, 3).astype(float), scale))
    assert {value for value in seen if np.isfinite(value)} <= set(scale.tolist())


@pytest.mark.parametrize("rows", [1, 20, 60, 300, 1000, 3000])
def test_no_more_rows_are_run_than_the_budget_allows(rows):
    box = Budgeted(Good(), rows=rows)  # would refuse, and be reported as a fault
    report = check(box, draws(32, 3), rows=rows)
    assert report.rows <= rows
    assert box.ledger.rows_run <= rows
    assert not report.faults, str(report)
    skipped = report.of(Verdict.SKIPPED)
    assert all("rows" in found.sentence for found in skipped if found.check != "process safety")
    assert (rows <= 300) == any("Take more, such as --rows 6000" in found.sentence for found in skipped)


@pytest.mark.slow
def test_all_rows_are_counted():
    for box in (Good(), GoodRowByRow()):
        report = check(box, draws(8, 3))
        assert report.rows == box.ledger.rows_run + box.ledger.rows_skipped


@pytest.mark.slow
def test_the_same_seed_gives_the_same_findings():
    first, second = (check(Good(), seed=3) for _ in range(2))
    assert first.recommendations == second.recommendations
    assert first.findings == second.findings


@pytest.mark.parametrize("policy", ["raise", "keep"])
def test_the_policy_is_what_it_was(policy):
    for box in (FailsHere(failures=policy), AlwaysFails(failures=policy)):
        check(box, rows=300)
        assert box.failures == policy


def test_failed_rows_do_not_end_the_check():
    report = check(FailsHere())
    assert [found.check for found in report.of(Verdict.FAULT)] == []
    assert report.recommendations and report.finding("determinism").verdict is Verdict.OK
    nothing = check(AlwaysFails())
    skipped = {found.check for found in nothing.of(Verdict.SKIPPED)}
    assert {"determinism", "batch-mates", "noise level", "smoothness"} <= skipped
    assert [found.check for found in nothing.faults] == ["answers"]


def test_errors_of_the_box_s_own_do_not_end_the_check():
    class Refuses(Good):
        """As WakeFlow does: an error of the package is no failed row, it leaves the call."""

        def evaluate_rows(self, x: Any) -> Any:
            if np.abs(x).max(initial=0.0) > 2.5:
                raise InputError("expected numbers up to 2.5. Take smaller ones.")
            return self.smooth(x)

    report = check(Refuses(), np.clip(draws(16, 3), -2, 2))
    assert "up to 2.5" in report.finding("noise level").sentence
    assert "up to 2.5" in check(Refuses(), 3 + draws(4, 3) ** 2).finding("answers").sentence


def test_whole_numbers():
    class Sorting(BlackBoxFunction):
        inputs = (ArraySpec("k", (4,), "int64"),)
        outputs = (ArraySpec("rank", (4,), "int64"),)

        def evaluate_rows(self, k: Any) -> Any:
            return np.argsort(np.argsort(k, axis=1), axis=1)

    report = check(Sorting())
    assert not report.faults and not report.recommendations
    assert [found.check for found in report.warnings] == ["picklability"]  # a class in a function
    assert report.finding("NaN inputs").verdict is Verdict.SKIPPED


def test_the_process_is_left_as_it_was():
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = [random.random(), torch.rand(()).item(), np.random.random()]  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    check(Seeding(), rows=300)
    check(NoGradient(), rows=300)
    assert torch.is_grad_enabled()
    assert [random.random(), torch.rand(()).item(), np.random.random()] == expected  # noqa: NPY002


def test_samples_from_files(tmp_path):
    scale = np.ones(4)
    np.savez(tmp_path / "both.npz", scale=scale, x=draws(4, 3))
    x, given = read_samples(GoodInTorch(), tmp_path / "both.npz")
    assert np.array_equal(x, draws(4, 3)) and np.array_equal(given, scale)
    np.save(tmp_path / "one.npy", draws(4, 3))
    assert np.array_equal(read_samples(Good(), str(tmp_path / "one.npy"))[0], draws(4, 3))
    np.savez(tmp_path / "part.npz", x=draws(4, 3))
    with pytest.raises(InputError, match=r"expected the arrays x, scale, got x\. Save them"):
        read_samples(GoodInTorch(), tmp_path / "part.npz")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="expected arrays of numbers"):
        read_samples(Good(), tmp_path / "pickled.npy")
    with pytest.raises(InputError, match=r"one\.npy: expected 2 arrays, x, scale, .*savez\("):
        read_samples(GoodInTorch(), tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError):
        read_samples(Good(), tmp_path / "none.npz")


class FailsSeldom(Good):
    """It fails next to its samples, which it answers: on some of the rows of lines through them."""

    def __init__(self, samples: np.ndarray) -> None:
        super().__init__()
        self.samples = samples
        self.lost = 0

    def evaluate_rows(self, x: Any) -> Any:
        y = self.smooth(x)
        lost = (np.abs(np.sin(1e3 * x[:, 0])) < 0.05) & ~(x[:, None] == self.samples).all(2).any(1)
        y[lost] = np.nan
        self.lost += int(lost.sum())
        return y


@pytest.mark.slow
def test_rows_that_fail_next_to_the_samples_head_the_report_too():
    samples = draws(32, 3)
    box = FailsSeldom(samples)
    report = check_black_box(box, samples, processes=False)
    found = report.finding("answers")
    assert found.verdict is Verdict.WARNING and box.lost > 0
    assert found.number == box.lost / report.rows
    assert "All 32 samples are answered, but " in found.sentence and "the first: row " in found.sentence
    assert found.sentence in report.summary() and "no warnings" not in report.summary()
    clean = check_black_box(Good(), samples, processes=False)
    assert clean.finding("answers").verdict is Verdict.OK


def test_what_happens_now_and_then_is_not_blamed_on_threads():
    with probing(NowAndThen(97), draws(32, 3)) as probe:  # each thread makes 40 calls
        found = thread_safety(probe)
    assert found.verdict is Verdict.FAULT
    assert "without threads too" in found.sentence and "now and then" in found.sentence


@pytest.mark.parametrize("every", [16, 17, 18])
def test_what_happens_now_and_then_is_not_blamed_on_other_rows(every):
    report = check(NowAndThen(every), draws(32, 3), rows=400)
    places = ("memory", "batch-mates", "row order", "batch size")
    blamed = [found.sentence for found in report.faults if found.check in places]
    assert blamed and all("now and then" in sentence for sentence in blamed)


def test_a_box_that_was_called_before_has_no_first_answer_to_compare():
    box = FirstIsAnother()
    box(draws(2, 3))
    found = check(box, draws(8, 3), rows=200).finding("first call")
    assert found.verdict is Verdict.SKIPPED and "called before" in found.sentence


@pytest.mark.parametrize("settings", [{"seconds": None}, {"rows": 40}])
def test_the_first_answer_is_compared_however_little_is_allowed(settings):
    assert "first call" in [
        found.check for found in check(FirstIsAnother(), draws(8, 3), **{"rows": 200, **settings}).faults
    ]
