"""`assert_conforms`: the checks as one line in a test of one's own, for pytest or any other runner."""

from __future__ import annotations

from collections.abc import Collection

from blackbox.checks import nearest
from blackbox.conformance.check import check_black_box
from blackbox.conformance.findings import Verdict
from blackbox.conformance.report import Report
from blackbox.conformance.samples import Samples
from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction


def assert_conforms(
    box: BlackBoxFunction,
    samples: Samples | None = None,
    *,
    rows: int | None = None,
    processes: bool = True,
    seed: int = 0,
    allow: Collection[str] = (),
    warnings: bool = True,
) -> Report:
    """Fail where `check_black_box` finds a fault.

        def test_solver():
            assert_conforms(Solver(), samples=np.load("states.npy"), allow=("thread safety",))

    Args:
        box: and the next four as in `check_black_box`.
        samples: see there.
        rows: see there.
        processes: see there.
        seed: see there.
        allow: names of checks that may find what they find.
        warnings: whether warnings may pass too.

    Returns:
        The report, for assertions of one's own: `report.recommendations`.

    Raises:
        AssertionError: with the sentences of what was found.
        ConfigurationError: `allow` names no check.
    """
    report = check_black_box(box, samples, rows=rows, processes=processes, seed=seed)
    names = [found.check for found in report.findings]
    for name in allow:
        if name not in names:
            raise ConfigurationError(
                f"assert_conforms, allow: expected names of checks, got {name!r}. "
                f"{nearest(name, names, 'The checks are')}"
            )
    refused = {Verdict.FAULT} if warnings else {Verdict.FAULT, Verdict.WARNING}
    found = [found for found in report.findings if found.verdict in refused and found.check not in allow]
    if found:
        lines = "\n".join(f"  {item.check} ({item.verdict.value}): {item.sentence}" for item in found)
        raise AssertionError(f"{report.summary()}\n{lines}")
    return report
