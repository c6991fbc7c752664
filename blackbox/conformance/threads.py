"""Check with threads: calls at the same time give what they give one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from blackbox.conformance.comparing import Difference, compare
from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.probe import Arrays, BoxRaisedError, Probe

THREADS, ROUNDS = 4, 3


def thread_safety(probe: Probe) -> Finding:
    """Four threads, each with other rows, three calls each."""
    count = min(8, len(probe.samples[0]))
    batches = [probe.rows(count * thread + thread, count) for thread in range(THREADS)]
    alone = [probe(batch) for batch in batches]
    probe.spend(THREADS * ROUNDS * count)
    together = Barrier(THREADS)

    def work(batch: Arrays) -> list[Arrays | BoxRaisedError]:
        given: list[Arrays | BoxRaisedError] = []
        for _ in range(ROUNDS):
            together.wait()
            try:
                given.append(probe.uncounted(batch))
            except BoxRaisedError as raised:
                given.append(raised)
        return given

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(work, batches))
    bad: list[str] = []
    for serial, thread in zip(alone, answers, strict=True):
        for answer in thread:
            if isinstance(answer, BoxRaisedError):
                bad.append(f"{type(answer.__cause__).__name__}: {answer.__cause__}")
                continue
            difference: Difference = compare(probe, serial, answer)
            if difference.verdict is not Verdict.OK:
                bad.append(difference.words())
    unit = f"of {THREADS * ROUNDS} calls differ"
    if not bad:
        sentence = "Calls from several threads give what they give one after the other."
        return Finding("thread safety", Verdict.OK, sentence, 0, unit)
    sentence = (
        f"Calls from several threads disturb each other: {bad[0]}. Give each call its own work arrays, or "
        "use processes, not threads, in Parallel."
    )
    return Finding("thread safety", Verdict.WARNING, sentence, len(bad), unit)
