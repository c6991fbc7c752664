"""Conformance: is a black box fit to be trained through, how noisy is it, and which mu does that ask for."""

from blackbox.conformance.check import check_black_box
from blackbox.conformance.command import command
from blackbox.conformance.ecnoise import NoiseLevels, ecnoise
from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.recommendation import Recommendation, Steps
from blackbox.conformance.report import Report
from blackbox.conformance.samples import read_samples
from blackbox.conformance.testing import assert_conforms

__all__ = [
    "Finding",
    "NoiseLevels",
    "Recommendation",
    "Report",
    "Steps",
    "Verdict",
    "assert_conforms",
    "check_black_box",
    "command",
    "ecnoise",
    "read_samples",
]
