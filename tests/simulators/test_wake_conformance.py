"""The wake is fit to be trained through: no check of the conformance suite finds a fault."""

from __future__ import annotations

import torch

from blackbox.conformance import check_black_box
from simulators.wake_flow import WakeFlow, staggered


def test_the_wake_has_no_fault():
    box = WakeFlow(8)
    noise = 0.05 * torch.randn(12, *box.inputs[0].shape, generator=torch.Generator().manual_seed(0))
    velocity = staggered.start(box.step.channel).float() + noise
    reynolds = torch.linspace(100, 1000, 12)
    for _ in range(3):
        velocity = box(velocity, reynolds)
    report = check_black_box(box, (velocity, reynolds), processes=False)
    warned = [found.check for found in report.warnings]
    assert not report.faults and not warned, str(report)
    assert [found.input for found in report.recommendations] == ["velocity"]
    assert box.failures == "raise"
