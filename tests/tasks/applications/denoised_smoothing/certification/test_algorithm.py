"""CERTIFY and PREDICT at their ends, and which queries they ask."""

import numpy as np
import pytest
import torch
from scipy import stats

from tasks.applications.denoised_smoothing.certification import (
    ABSTAIN,
    FAILED,
    BaseClassifier,
    Phase,
    Settings,
    certify_image,
    count_votes,
    predict_image,
)
from tasks.errors import ProblemError
from tests.tasks.applications.denoised_smoothing.certification.classifiers import (
    at_distance,
    base,
    by_chance,
    half_space,
    pictures,
)

IMAGE = pictures(1)[0]


def always(label):
    return base(lambda rows: torch.full((len(rows),), label), 4)


def plain(certificate):
    """All of it but the time."""
    return {name: value for name, value in vars(certificate).items() if name != "seconds"}


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_a_constant_classifier_certifies_the_cap(n):
    settings = Settings(0.5, n=n, n0=10, alpha=0.01)
    found = certify_image(always(2), IMAGE, 7, 2, settings)
    assert found.radius == pytest.approx(0.5 * stats.norm.ppf(0.01 ** (1 / n)), rel=1e-9)
    assert found.radius == settings.radius_cap
    assert (found.predict, found.votes, found.n, found.queries, found.failed) == (2, n, n, n + 10, 0)
    assert found.correct and found.idx == 7
    assert predict_image(always(2), IMAGE, 7, settings) == 2


def test_a_random_classifier_abstains():
    settings = Settings(0.25, n=300, n0=20, alpha=0.001)
    found = [certify_image(base(by_chance), IMAGE, index, 0, settings) for index in range(200)]
    certified = [one for one in found if one.predict != ABSTAIN]
    # it may be certified with probability alpha; five of 200 are a matter of 1e-9
    assert len(certified) < 5
    assert all(one.radius == 0 and not one.correct for one in found if one.predict == ABSTAIN)
    votes = np.array([one.votes for one in found])
    assert abs(votes.mean() - 150) < 5 * np.sqrt(75 / 200)


def test_a_box_that_never_answers_earns_an_abstention():
    found = certify_image(always(FAILED), IMAGE, 0, 0, Settings(0.25, n=50, n0=10))
    assert (found.predict, found.radius, found.votes, found.failed) == (ABSTAIN, 0.0, 0, 60)
    assert predict_image(always(FAILED), IMAGE, 0, Settings(0.25, n=50, n0=10)) == ABSTAIN


def test_failed_queries_count_in_n():
    """Ten of 100 answers fail: the bound is that of 90 in 100, not of 90 in 90."""
    count = iter(range(10_000))

    def labels(rows):
        return torch.tensor([FAILED if next(count) % 10 == 0 else 1 for _ in rows])

    found = certify_image(base(labels), IMAGE, 0, 1, Settings(0.25, n=100, n0=10, alpha=0.05))
    assert (found.votes, found.failed, found.n) == (90, 11, 100)
    assert found.hits == 90
    # P(Binomial(100, p) >= 90) = alpha at the bound
    assert stats.binom.sf(89, 100, found.probability) == pytest.approx(0.05, rel=1e-9)


def test_the_class_is_chosen_by_other_queries_than_those_that_count():
    """A classifier that changes its mind after n0 queries is held to its first word."""
    asked = []

    def labels(rows):
        asked.append(len(rows))
        return torch.full((len(rows),), 0 if sum(asked) <= 20 else 1)

    found = certify_image(base(labels), IMAGE, 0, 1, Settings(0.25, n=100, n0=20))
    assert (found.predict, found.votes, sum(asked)) == (ABSTAIN, 0, 120)
    assert found.hits == 100  # of the true class, whatever was chosen


def test_what_comes_before_the_box_gets_whole_blocks():
    shapes = set()

    def front(block):
        shapes.add(tuple(block.shape))
        return block * 2

    classifier = BaseClassifier(lambda rows: half_space(rows / 2), 2, front)
    settings = Settings(0.25, n=130, n0=30, block=40)
    found = certify_image(classifier, at_distance(0.1, 1)[0], 0, 1, settings)
    assert shapes == {(40, 1, 1, 2)}
    assert plain(found) == plain(certify_image(base(half_space), at_distance(0.1, 1)[0], 0, 1, settings))


@pytest.mark.parametrize(
    "labels, front, words",
    [
        (half_space, lambda block: block.mean(0, keepdim=True), "each of 40 noisy images, got 1"),
        (lambda rows: half_space(rows)[:1], None, "each of 40 rows, got 1"),
        (lambda rows: half_space(rows).repeat(2), None, "each of 40 rows, got 80"),
    ],
)
def test_another_number_of_rows_than_was_drawn_is_refused(labels, front, words):
    settings = Settings(0.25, n=130, n0=40, block=40)
    with pytest.raises(ProblemError, match=words):
        certify_image(BaseClassifier(labels, 2, front), at_distance(0.1, 1)[0], 0, 1, settings)


def test_more_queries_begin_with_those_of_fewer():
    def asked(queries):
        seen = []

        def labels(images):
            seen.append(images)
            return half_space(images)

        count_votes(base(labels), at_distance(0.1, 1)[0], 5, Phase.ESTIMATE, queries, settings)
        return torch.cat(seen)

    settings = Settings(0.25, n=100, n0=10, block=16)
    rows = {queries: asked(queries) for queries in (7, 50, 100)}
    assert torch.equal(rows[100][:50], rows[50]) and torch.equal(rows[50][:7], rows[7])
    assert len(torch.unique(rows[100], dim=0)) == 100
