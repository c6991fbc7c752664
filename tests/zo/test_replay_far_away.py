"""Replays where the weights have gone to what the tangents know nothing of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch

SPEC = ArraySpec("x", (2,))
NEVER = zo.tangents.TrustPolicy(check_every=None, lost=1e9)


def gradient_of(replays: int | None) -> zo.TangentGradient:
    torch.manual_seed(0)
    box = FromTorch(lambda x: torch.tanh(x) + 1e-3 * x, (SPEC,), (ArraySpec("y", (2,)),))
    network = nn.Linear(2, 2)
    return zo.TangentGradient(
        network,
        lambda net, rows: box(net(rows)).square().mean(dim=1),
        boxes=[box],
        tangent=learner(zo.tangents.MLPTangent, width=16, first_steps=50, seed=0),
        replays=replays,
        trust_policy=NEVER,
    )


@pytest.mark.parametrize(("fixed", "expected"), [(None, 0), (3, 3)])
def test_nothing_is_replayed_after_answers_that_nobody_foretold(fixed, expected):
    gradient = gradient_of(fixed)
    for step in range(3):
        gradient.network.zero_grad()
        gradient.backward(torch.rand(4, 2, generator=torch.Generator().manual_seed(step)))
        before = gradient.replays()
    assert before > 0
    with torch.no_grad():
        gradient.network.bias += 6.0  # where the box hardly answers any more
    gradient.network.zero_grad()
    gradient.backward(torch.rand(4, 2))
    assert gradient.trust_of_step is not None and gradient.trust_of_step > 10
    assert gradient.replays() == expected
    again = gradient_of(fixed)
    again.load_state_dict(copy.deepcopy(gradient.state_dict()))
    assert again.replays() == expected  # also where a run is gone on with right here
