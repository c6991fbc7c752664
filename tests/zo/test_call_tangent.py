"""Tangents of 0.3 go on under a base of their own; elsewhere they are refused, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from tests.zo.chains import X, bent, chain, make_network
from tests.zo.row_boxes import FromTorch, weights

with pytest.warns(DeprecationWarning, match="Slopes: CallTangent has the methods of 0.3"):

    class Slopes(zo.tangents.CallTangent):
        """A diagonal by least squares, with the methods of 0.3."""

        learns_from_values = True

        def __init__(self):
            self.rows, self.slope, self.calls = [], torch.zeros(4).double(), []

        def see(self, pairs):
            self.rows.append((pairs.z, pairs.y))

        def observe(self, pairs):
            self.calls.append(("observe", pairs.d.shape[:2]))
            z, y = (torch.cat(column) for column in zip(*self.rows, strict=True))
            z, y = z - z.mean(0), y - y.mean(0)
            self.slope = (z * y).sum(0) / z.square().sum(0)

        def linearise(self, calls):
            self.calls.append(("linearise", len(calls)))

        def apply(self, pairs, d):
            return d * self.slope

        def vjp(self, pairs, cotangent):
            return cotangent * self.slope

        def predict_values(self, pairs):
            return pairs.z * self.slope


class Now(zo.tangents.Tangent):
    """The same, with the methods of today."""

    learns_from_values = True

    def __init__(self):
        self.rows, self.slope = [], torch.zeros(4).double()

    def see(self, rows):
        self.rows.append((rows.z, rows.y))

    def learn(self, steps=None):
        z, y = (torch.cat(column) for column in zip(*self.rows, strict=True))
        z, y = z - z.mean(0), y - y.mean(0)
        self.slope = (z * y).sum(0) / z.square().sum(0)

    def at(self, rows):
        slope = self.slope
        return zo.tangents.LinearMap(rows, lambda d: d * slope, lambda v: v * slope, rows.z * slope)


def trained(tangent, **settings):
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    gradient = zo.ProbedGradient(network, chain(box), boxes=[box], tangent=tangent, seed=0, **settings)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        gradient.backward(weights(5, 4, seed=step))
        optimizer.step()
        for _ in range(2):
            optimizer.zero_grad()
            gradient.replay() if gradient.replays() else None
            optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters()), gradient


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_a_tangent_of_0_3_trains_as_one_of_today_to_the_bit():
    before, gradient = trained(Slopes())
    now, _ = trained(Now())
    assert torch.equal(before, now)
    (tangent,) = gradient.tangents
    assert tangent.calls[:2] == [("observe", (1, 0)), ("linearise", 3)]  # no probes: no pairs


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_with_probes_it_observes_all_pairs_of_a_step_also_below_another():
    for wrap, inner in ((lambda own: own, None), (zo.SecantTangent, "prior")):
        _, gradient = trained(wrap(Slopes()), probes=2)
        (tangent,) = gradient.tangents
        tangent = tangent if inner is None else getattr(tangent, inner)
        assert tangent.calls[0] == ("observe", (1, 3 * 2 * 5))  # calls, probes, rows


@pytest.mark.parametrize("method", ["apply", "vjp", "predict_values", "observe", "linearise", "responses"])
def test_a_class_that_is_written_for_0_3_is_refused_when_it_is_defined(method):
    for base in (zo.tangents.Tangent, zo.MLPTangent):
        with pytest.raises(
            zo.ConfigurationError, match=rf"Old: expected .* at\(rows\).* got {method} as in 0.3"
        ):
            type("Old", (base,), {method: lambda self, pairs: None})
