"""`SmoothedClassifier` around real boxes: what it asks, in how many pieces, and what it writes down."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from blackbox import ArraySpec, Budgeted, Cached, Parallel, Retrying
from blackbox.adapters import from_callable
from blackbox.errors import BudgetError
from tasks.applications.denoised_smoothing import SmoothedClassifier
from tasks.applications.denoised_smoothing.certification import Phase, noise_block, read_certificates
from tasks.errors import DataError, ProblemError
from tests.tasks.applications.denoised_smoothing.certification.classifiers import (
    Denoiser,
    Label,
    Linear,
    pictures,
)
from zo.errors import FailedQueriesError

SETTINGS = {"n0": 10, "n": 120, "alpha": 0.05}
LABELS = torch.tensor([0, 1, 2, 0])
pytestmark = pytest.mark.filterwarnings("ignore:with N = :UserWarning")


def plain(certificates):
    return [{k: v for k, v in vars(one).items() if k != "seconds"} for one in certificates]


def certificates(box, denoiser=None, images=4, **settings):
    smoothed = SmoothedClassifier(box, denoiser, sigma=0.25, block=40, **settings)
    return plain(smoothed.certify(pictures(images), LABELS[:images], **SETTINGS))


def test_it_asks_box_o_clamp_o_denoiser_about_noisy_images():
    asked = []

    def f(images):
        asked.append(images.copy())
        return Linear().evaluate_rows(images)

    box = from_callable(f, inputs=Linear.inputs, outputs=Linear.outputs, vectorized=True)
    denoiser = Denoiser().train()  # made to work in evaluation mode all the same
    image = pictures(1)
    SmoothedClassifier(box, denoiser, sigma=0.25, seed=3, block=40).certify(image, LABELS[:1], **SETTINGS)
    assert denoiser.training
    with torch.no_grad():
        noisy = [image + 0.25 * noise_block(3, 0, Phase.ESTIMATE, k, (40, 1, 4, 4)) for k in range(3)]
        expected = torch.cat([denoiser.eval()(block) for block in noisy]).clamp(0, 1)
    again = asked.pop(1)  # two of the first ten, to see that the function takes rows
    assert [len(rows) for rows in (again, *asked)] == [2, 10, 40, 40, 40]
    np.testing.assert_array_equal(np.concatenate(asked[1:]), expected.numpy())
    assert asked[1].min() == 0 and asked[1].max() == 1  # where the clamp was at work


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_certificates_are_equal_for_any_number_of_workers(workers):
    truth = certificates(Linear(), Denoiser())
    assert {one["predict"] for one in truth} - {-1}  # not all of them abstentions
    with ThreadPoolExecutor(workers) as pool:
        assert certificates(Parallel(Linear(), pool, block=5), Denoiser()) == truth


def test_another_seed_gives_other_noise():
    one, other = certificates(Linear()), certificates(Linear(), seed=1)
    assert [each["votes"] for each in one] != [each["votes"] for each in other]


def test_labels_scores_and_flat_images_are_one_classifier():
    truth = certificates(Linear())
    assert certificates(Label(), classes=3) == truth

    def flat(vectors):
        scores = Linear().evaluate_rows(vectors.reshape(len(vectors), 1, 4, 4))
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    inputs, outputs = (ArraySpec("pixels", (16,), "float64"),), (ArraySpec("probabilities", (3,)),)
    assert certificates(from_callable(flat, inputs=inputs, outputs=outputs, vectorized=True)) == truth

    def label(vectors):
        return flat(vectors).argmax(axis=1).astype(float)[:, None]

    box = from_callable(label, inputs=inputs, outputs=(ArraySpec("label", (1,)),), vectorized=True)
    assert certificates(box, classes=3) == truth


def test_rows_that_fail_are_votes_for_nobody():
    def f(images):
        scores = Linear().evaluate_rows(images)
        scores[images[:, 0, 0, 0] > 0.9] = np.nan
        return scores

    box = from_callable(f, inputs=Linear.inputs, outputs=Linear.outputs, vectorized=True, failures="keep")
    smoothed = SmoothedClassifier(box, sigma=0.25)
    found = smoothed.certify(pictures(4), LABELS, **SETTINGS, max_failed=1.0)
    assert sum(one.failed for one in found) == box.ledger.rows_failed > 0
    whole = SmoothedClassifier(Linear(), sigma=0.25).certify(pictures(4), LABELS, **SETTINGS)
    assert all(a.votes <= b.votes for a, b in zip(found, whole, strict=True))


def test_predictions_agree_with_certificates():
    smoothed = SmoothedClassifier(Linear(), Denoiser(), sigma=0.25)
    images = pictures(8)
    certain = smoothed.certify(images, None, n0=20, n=400, alpha=0.001)
    said = smoothed.predict(images, n=400, alpha=0.001)
    assert said.shape == (8,) and said.dtype == torch.int64
    both = [
        (one.predict, int(two)) for one, two in zip(certain, said, strict=True) if one.predict >= 0 <= two
    ]
    assert both and all(one == two for one, two in both)  # each is wrong once in a thousand
    assert not any(one.correct for one in certain)  # of unknown labels none is right, an abstention neither


def test_a_box_that_is_down_is_no_abstention_of_a_prediction():
    class Down(Linear):
        def evaluate_rows(self, image):
            return np.full_like(super().evaluate_rows(image), np.nan)

    smoothed = SmoothedClassifier(Down(failures="keep"), sigma=0.25)
    with pytest.raises(FailedQueriesError, match=r"at most 10% .* got 50 of 50\."):
        smoothed.predict(pictures(2), n=50)
    assert smoothed.predict(pictures(2), n=50, max_failed=1.0).tolist() == [-1, -1]


def test_what_it_will_take_is_said(tmp_path):
    box = Cached(Retrying(Budgeted(Linear(), rows=600)), tmp_path / "queries.db")
    smoothed = SmoothedClassifier(box, sigma=0.25)
    told = smoothed.plan(4, n0=10, n=120)
    assert told == "Certifying 4 images takes 520 queries; the budget has 600 left."
    smoothed.certify(pictures(4), LABELS, **SETTINGS)
    assert box.ledger.rows_run == 520
    # once more, from the cache: it may say no only where even all that is kept would not do
    assert "the cache keeps 520 answers" in smoothed.plan(4, n0=10, n=120)
    smoothed.certify(pictures(4), LABELS, **SETTINGS)
    assert box.ledger.rows_run == 520
    with pytest.raises(BudgetError, match=r"at most 600 queries, got 650 for 5 images\. None was asked"):
        smoothed.certify(pictures(5), torch.zeros(5, dtype=torch.int64), **SETTINGS)
    assert "3 images takes 390 queries" in smoothed.plan(3, n0=10, n=120)


@pytest.mark.parametrize("short", [0, 129, 519])
def test_a_plan_over_budget_asks_nothing(short):
    box = Budgeted(Linear(), rows=short)
    smoothed = SmoothedClassifier(box, sigma=0.25)
    with pytest.raises(BudgetError):
        smoothed.certify(pictures(4), LABELS, **SETTINGS)
    with pytest.raises(BudgetError):
        smoothed.predict(pictures(4), n=short // 4 + 1)
    assert box.ledger.rows_asked == 0
    smoothed.predict(pictures(1), n=max(1, short)) if short else None
    assert box.ledger.rows_run == short


def test_the_record_says_what_was_certified(tmp_path):
    file = tmp_path / "student.tsv"
    smoothed = SmoothedClassifier(Linear(), Denoiser(), sigma=0.25, seed=4, method="student")
    found = smoothed.certify(pictures(4), LABELS, **SETTINGS, file=file)
    assert plain(read_certificates(file)) == plain(found)
    record = json.loads(file.with_suffix(".json").read_text())
    expected = {"method": "student", "sigma": 0.25, "n0": 10, "n": 120, "alpha": 0.05, "seed": 4}
    expected |= {"clamp": [0.0, 1.0], "base classifier": "box o clamp o denoiser", "classes": 3}
    assert expected.items() <= record.items()
    assert len(record["denoiser"]) == len(record["box"]) == len(record["images"]) == 64


class Other(Linear):
    """Another box."""

    version = 2


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(
    "key, change",
    [
        ("sigma", {"sigma": 0.5}),
        ("n", {"n": 130}),
        ("n0", {"n0": 11}),
        ("alpha", {"alpha": 0.01}),
        ("seed", {"seed": 1}),
        ("noise", {"block": 50}),
        ("method", {"method": "mse"}),
        ("denoiser", {"denoiser": "other"}),
        ("box", {"box": Other()}),
        ("images", {"images": 3}),
        (None, {"box": Budgeted(Linear(), rows=10_000)}),
    ],
)
def test_a_table_goes_on_only_with_what_it_was_made_with(tmp_path, key, change):
    def certify(box=None, denoiser="one", images=4, n0=10, n=120, alpha=0.05, sigma=0.25, **settings):
        network = Denoiser()
        if denoiser == "other":
            nn.init.constant_(network.net[0].weight, 0.1)
        smoothed = SmoothedClassifier(box or Linear(), network, sigma=sigma, **settings)
        file = tmp_path / "a.tsv"
        return smoothed.certify(pictures(images), LABELS[:images], n0, n, alpha, file=file), smoothed

    certify()
    if key is not None:
        with pytest.raises(DataError, match=f"expected certificates with {key} "):
            certify(**change)
    else:
        assert certify(**change)[1].box.ledger.rows_asked == 0


def test_a_box_without_a_name_is_not_certified_into_a_file(tmp_path):
    class Nameless:
        handle = memoryview(b"nothing that could be named")

        def __call__(self, images):
            return Linear().evaluate_rows(images)

    box = from_callable(Nameless(), inputs=Linear.inputs, outputs=Linear.outputs, vectorized=True)
    smoothed = SmoothedClassifier(box, sigma=0.25)
    with pytest.raises(ProblemError, match="identity"):
        smoothed.certify(pictures(4), LABELS, **SETTINGS, file=tmp_path / "a.tsv")
    assert box.ledger.rows_asked == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [True, False])
def test_the_version_of_a_cache_names_its_box_in_the_record(tmp_path, named):
    """It stands for what cannot be described; another version is another classifier behind the same code."""
    handle = memoryview(b"nothing that could be named")

    def f(images):
        return Linear().evaluate_rows(images) * len(handle)

    def certify(version):
        box = from_callable(f, inputs=Linear.inputs, outputs=Linear.outputs, vectorized=True)
        cached = Cached(Linear() if named else box, tmp_path / "answers.db", version=version)
        smoothed = SmoothedClassifier(Retrying(cached, attempts=2), sigma=0.25)
        return smoothed.certify(pictures(4), LABELS, **SETTINGS, file=tmp_path / "a.tsv")

    assert certify("1") == certify("1")
    with pytest.raises(DataError, match="expected certificates with box "):
        certify("2")


def test_images_that_are_done_are_not_asked_again(tmp_path):
    class Stopped(BaseException):
        pass

    def stop(found):
        if found.idx == 1:
            raise Stopped

    box, file = Linear(), tmp_path / "a.tsv"
    smoothed = SmoothedClassifier(box, sigma=0.25)
    with pytest.raises(Stopped):
        smoothed.certify(pictures(4), LABELS, **SETTINGS, file=file, after=stop)
    assert box.ledger.rows_run == 2 * 130
    found = smoothed.certify(pictures(4), LABELS, **SETTINGS, file=file)
    assert box.ledger.rows_run == 4 * 130
    assert plain(found) == plain(
        SmoothedClassifier(Linear(), sigma=0.25).certify(pictures(4), LABELS, **SETTINGS)
    )
    with pytest.raises(DataError, match="idx 1: expected label 0, got 1"):
        smoothed.certify(pictures(4), torch.zeros(4, dtype=torch.int64), **SETTINGS, file=file)
