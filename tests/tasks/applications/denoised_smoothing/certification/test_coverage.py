"""Certificates of a half-space, whose robust radius is known: how often they claim more."""

import numpy as np
import pytest
import torch
from scipy import stats

from tasks.applications.denoised_smoothing.certification import (
    ABSTAIN,
    Phase,
    Settings,
    certify_image,
    count_votes,
    lower_bound,
    noise_block,
    predict_image,
    radius,
)
from tests.tasks.applications.denoised_smoothing.certification.classifiers import (
    at_distance,
    base,
    failing_half_space,
    half_space,
)

SIGMA, DISTANCE, IMAGES = 0.25, 0.3, 1500
FALSE_ALARMS = 1e-6  # of each statistical test here


def certificates(labels, alpha, distance=DISTANCE, images=IMAGES, n=60):
    settings = Settings(SIGMA, n=n, n0=10, alpha=alpha, block=70)
    classifier = base(labels)
    return [
        certify_image(classifier, image, index, 1, settings)
        for index, image in enumerate(at_distance(distance, images))
    ]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_no_more_certificates_are_wrong_than_may_be(alpha):
    found = certificates(half_space, alpha)
    # P(f(x + noise) = 1) = Phi(distance / sigma), so no radius beyond the distance is true
    wrong = sum(one.predict == 0 or one.radius > DISTANCE for one in found)
    assert stats.binom.sf(wrong - 1, IMAGES, alpha) > FALSE_ALARMS
    # and as many as the binomial distribution says for just this probability: no slack, no double counting
    p = stats.norm.cdf(DISTANCE / SIGMA)
    claims = [radius(SIGMA, lower_bound(k, 60, alpha)) > DISTANCE for k in range(61)]
    expected = stats.binom.pmf(np.arange(61), 60, p)[claims].sum()
    assert 0 < expected <= alpha
    assert stats.binomtest(wrong, IMAGES, float(expected)).pvalue > FALSE_ALARMS


@pytest.mark.slow
def test_votes_are_those_of_independent_noise():
    """Binomial over images: noise shared within an image would change the spread and not the mean."""
    settings = Settings(SIGMA, n=60, n0=10, block=25)
    votes = [
        int(count_votes(base(half_space), image, index, Phase.ESTIMATE, 60, settings)[0][1])
        for index, image in enumerate(at_distance(DISTANCE, IMAGES))
    ]
    p = stats.norm.cdf(DISTANCE / SIGMA)
    edges = [-1, 48, 50, 51, 52, 53, 54, 55, 56, 57, 60]
    counted = np.histogram(votes, np.array(edges) + 0.5)[0]
    expected = IMAGES * np.diff(stats.binom.cdf(edges, 60, p))
    assert counted.sum() == IMAGES and expected.min() > 5
    assert stats.chisquare(counted, expected).pvalue > FALSE_ALARMS


def test_failed_queries_earn_no_radius():
    """Where it would be wrong this box gives no answer: counting answers alone would certify the cap."""
    found = certificates(failing_half_space, 0.05, images=400)
    wrong = sum(one.radius > DISTANCE for one in found)
    assert stats.binom.sf(wrong - 1, 400, 0.05) > FALSE_ALARMS
    assert sum(one.failed for one in found) > 0
    p = stats.norm.cdf(DISTANCE / SIGMA)
    failed = sum(one.failed for one in found)
    assert stats.binomtest(failed, 400 * 70, 1 - p).pvalue > FALSE_ALARMS


@pytest.mark.slow
def test_on_the_plane_nothing_is_predicted():
    settings = Settings(SIGMA, n=200, n0=1, alpha=0.01)
    classifier = base(half_space)
    said = [
        predict_image(classifier, image, index, settings) != ABSTAIN
        for index, image in enumerate(at_distance(0.0, 500))
    ]
    assert stats.binom.sf(sum(said) - 1, 500, 0.01) > FALSE_ALARMS


def test_off_the_plane_predictions_are_right():
    settings = Settings(SIGMA, n=200, n0=1, alpha=0.01)
    for distance, label in ((0.2, 1), (-0.2, 0)):
        said = {predict_image(base(half_space), image, 3, settings) for image in at_distance(distance, 1)}
        assert said == {label}


def test_failures_that_lead_are_not_outvoted_by_the_rest():
    settings = Settings(SIGMA, n=200, n0=1, alpha=0.01)
    image = at_distance(-0.2, 1)[0]  # 79 % of the queries fail, all others say 1
    assert predict_image(base(failing_half_space), image, 0, settings) == ABSTAIN


def test_noise_is_standard_normal_and_different_everywhere():
    places = [(s, i, p, b) for s in (0, 1) for i in (0, 1, 256) for p in Phase for b in (0, 1)]
    blocks = torch.stack([noise_block(*place, (50, 1, 4, 4)) for place in places]).double()
    flat = blocks.reshape(len(places), -1).numpy()
    assert stats.kstest(flat.ravel(), "norm").pvalue > FALSE_ALARMS
    correlation = np.corrcoef(flat) - np.eye(len(places))
    assert np.abs(correlation).max() < 6 / np.sqrt(flat.shape[1])
    again = noise_block(1, 256, Phase.ESTIMATE, 1, (50, 1, 4, 4))
    assert torch.equal(again.double(), blocks[places.index((1, 256, Phase.ESTIMATE, 1))])
