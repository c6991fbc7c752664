"""Trust is of values: the errors of tangents before they learn."""

from __future__ import annotations

import math

import pytest
import torch

import zo
from blackbox import ArraySpec
from tests.zo.chains import Student, X, bent, chain, make_network
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import TrustPolicy


def test_the_trust_is_of_values():
    box, student = FromTorch(bent, (X,), (X,)), Student()
    unchecked = TrustPolicy(check_every=None)
    gradient = zo.TangentGradient(
        make_network(), chain(box), boxes=[box], tangent=student, trust_policy=unchecked
    )
    gradient.backward(weights(5, 4))
    assert gradient.trust == [None] * 3 and gradient.trust_of_step is None
    assert gradient.metrics()["tangent_error"] == 1.0  # nothing was known, and so nothing foretold
    assert [what for what, _ in student.said] == ["expect", "see", "learn"] + ["pull"] * 3
    foretold, seen, _, *calls = (pairs for _, pairs in student.said)
    for name in ("z", "y", "alive"):  # all rows at once, in the order of the calls; pulled in reverse
        rows = torch.cat([getattr(pairs, name) for pairs in reversed(calls)])
        assert torch.equal(getattr(foretold, name), rows) and torch.equal(getattr(seen, name), rows)
    lasts, student.said = seen.y.split(5), []
    gradient.backward(weights(5, 4, seed=1))
    seen = [pairs for what, pairs in student.said if what == "pull"][::-1]
    units, ys = seen[0].response_scale, [pairs.y for pairs in seen]
    sizes = [  # the smaller of spread and step: the box moves a state on
        min(((y - y.mean(dim=0)) / units).norm(), ((y - pairs.z) / units).norm())
        for y, pairs in zip(ys, seen, strict=True)
    ]
    errors = [((last - y) / units).norm() / size for last, y, size in zip(lasts, ys, sizes, strict=True)]
    assert any(size < ((y - y.mean(dim=0)) / units).norm() for y, size in zip(ys, sizes, strict=True))
    assert gradient.trust == pytest.approx([float(error) for error in errors], rel=1e-12)
    assert gradient.counts.rows == box.ledger.rows_run == 2 * 5 * 3
    assert gradient.next_queries() == 0


def test_calls_are_shown_at_once_as_far_as_their_rows_are_few(limits):
    limits(shown_at_once=2 * 5 * 4)
    box, student = FromTorch(bent, (X,), (X,)), Student()
    gradient = zo.TangentGradient(make_network(), chain(box), boxes=[box], tangent=student)
    gradient.backward(weights(5, 4))
    assert [len(pairs.z) for what, pairs in student.said if what in ("expect", "see")] == [10, 5] * 2


@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
def test_dead_rows_are_not_among_the_values():
    """A row that fails in the base is neither predicted nor part of the mean."""
    box, student = FromTorch(bent, (X,), (X,)), Student()
    gradient = zo.TangentGradient(make_network(), chain(box, 1), boxes=[box], tangent=student)
    batch = weights(5, 4)
    batch[1] = math.nan
    student.known = torch.zeros(5, 4).double()
    gradient.backward(batch)
    (pairs,) = (pairs for what, pairs in student.said if what == "see")
    y = bent(batch + gradient.network(batch))[[0, 2, 3, 4]].detach()
    assert pairs.alive.tolist() == [True, False, True, True, True]
    assert torch.allclose(pairs.y[pairs.alive], y) and pairs.y.isfinite().all()
    units = y.std(dim=0)  # each output counts by its spread
    expected = (y / units).norm() / ((y - y.mean(dim=0)) / units).norm()
    assert gradient.trust_of_step == pytest.approx(float(expected), rel=1e-6)


def test_one_row_is_measured_by_the_step_that_the_box_makes_of_a_state():
    box, student = FromTorch(bent, (X,), (X,)), Student()
    unchecked = TrustPolicy(check_every=None)
    gradient = zo.TangentGradient(
        make_network(), chain(box), boxes=[box], tangent=student, trust_policy=unchecked
    )
    gradient.backward(weights(1, 4))
    lasts, student.said = student.known.split(1), []
    gradient.backward(weights(1, 4, seed=1))
    seen = [pairs for what, pairs in student.said if what == "pull"][::-1]
    units = seen[0].response_scale
    errors = [
        ((last - pairs.y) / units).norm() / ((pairs.y - pairs.z) / units).norm()
        for last, pairs in zip(lasts, seen, strict=True)
    ]
    assert gradient.trust == pytest.approx([float(error) for error in errors], rel=1e-12)


def test_one_row_of_what_is_no_state_is_no_measure():
    box, student = FromTorch(lambda x: bent(x)[:, :2], (X,), (ArraySpec("force", (2,)),)), Student()
    gradient = zo.TangentGradient(
        make_network(),
        lambda network, batch: box(network(batch)).square().mean(dim=1),
        boxes=[box],
        tangent=student,
        trust_policy=TrustPolicy(check_every=None),
    )

    def zero(rows):
        return zo.tangents.LinearMap(
            rows, lambda d: 0 * d[:, :2], lambda v: torch.zeros_like(rows.z), student.known
        )

    student.at = zero
    with pytest.warns(zo.errors.ZeroGradientWarning):
        for _ in range(2):
            gradient.backward(weights(1, 4))
    assert gradient.trust == [None]
