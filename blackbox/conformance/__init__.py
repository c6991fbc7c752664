"""Conformance: is a black box fit to be trained through, how noisy is it, and which mu does that ask for."""

from blackbox.conformance.check import check_black_box, command
from blackbox.conformance.hosts import check_host
from blackbox.conformance.noise import NoiseLevels, ecnoise
from blackbox.conformance.probe import read_samples
from blackbox.conformance.report import CheckInterrupted, Finding, Recommendation, Report, Steps, Verdict

__all__ = [
    "CheckInterrupted",
    "Finding",
    "NoiseLevels",
    "Recommendation",
    "Report",
    "Steps",
    "Verdict",
    "check_black_box",
    "check_host",
    "command",
    "ecnoise",
    "read_samples",
]
