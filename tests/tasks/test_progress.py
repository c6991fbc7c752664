import io

import pytest
from rich.console import Console

from tasks import Progress
from tasks.listeners.progress import LiveProgress, PlainProgress, duration, make_progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def plain():
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(stream, clock), stream, clock


def test_plain_lines_come_about_every_ten_seconds_with_rates_and_times():
    progress, stream, clock = plain()
    progress.begin("seed-0/zo-sol", 100)
    for step in range(1, 51):
        clock.now += 1
        metrics = {"loss": 0.5 / step, "queries": 200 * step, "rows": 6400 * step, "failed_timed_out": 1}
        progress.update(step, metrics)
    progress.end()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "seed-0/zo-sol: 100 steps"
    assert lines[1] == (
        "seed-0/zo-sol: step 10 of 100, loss 0.05, 200 queries/s, 64,000 rows, 1 row timed out, "
        "10 s elapsed, 1 min 30 s left"
    )
    assert [line.split(",")[0] for line in lines[1:-1]] == [
        f"seed-0/zo-sol: step {step} of 100" for step in (10, 20, 30, 40, 50)
    ]
    assert len(lines) == 7


def test_the_time_left_follows_the_pace_of_the_last_steps_not_of_the_first():
    progress, stream, clock = plain()
    progress.begin("seed-0/tangents", 300)
    clock.now += 12  # the first validation, and learning on the first batch
    progress.update(1, {"loss": 1.0})
    assert stream.getvalue().splitlines()[-1] == "seed-0/tangents: step 1 of 300, loss 1, 12 s elapsed"
    for step in range(2, 300):  # four steps of a second, then ten in a second
        clock.now += 1 if step < 6 else 0.1
        progress.update(step, {"loss": 1.0})
    told = [line.split(", ") for line in stream.getvalue().splitlines()[2:]]
    for line in told:
        step = int(line[0].split()[2])
        left = float(line[-1].removesuffix(" s left"))
        assert left == pytest.approx((300 - step) / 10, rel=0.1)
    assert len(told) == 3


def test_steps_that_become_slower_are_the_pace_of_those_that_are_left():
    progress, stream, clock = plain()
    progress.begin("seed-0/tangents", 115)
    for step in range(1, 41):  # as ever more replays follow; one step in ten is checked
        clock.now += min(40.0, 2.0 * step) + (30 if step % 10 == 0 else 0)
        progress.update(step, {"loss": 1.0})
    told = [line.split(", ") for line in stream.getvalue().splitlines()[2:]]
    lefts = {int(line[0].split()[2]): line[-1] for line in told}
    took = {step: min(40.0, 2.0 * step) + (30 if step % 10 == 0 else 0) for step in range(1, 41)}
    for step, last in ((14, range(2, 15)), (40, range(9, 41))):  # all but the first, and then the last 32
        pace = sum(took[one] for one in last) / len(last)
        assert lefts[step] == f"{duration((115 - step) * pace)} left"


def test_a_round_that_ends_among_thousands_of_steps_is_not_taken_for_the_pace_of_all():
    progress, stream, clock = plain()
    progress.begin("seed-0/surrogate", 6000)
    for step in range(1, 3001):  # at the end of each thousand a network is trained
        clock.now += 0.01 + (20 if step % 1000 == 0 else 0)
        progress.update(step, {"loss": 1.0})
    last = stream.getvalue().splitlines()[-1]
    pace = 0.01 + 20 / 750  # of the last quarter, which has one end of a round in it
    assert "step 3000 of 6000" in last and last.endswith(f", {duration(3000 * pace)} left")


def test_the_time_left_is_that_of_the_steps_that_a_budget_left():
    progress, stream, clock = plain()
    progress.begin("seed-0/population", 816)
    for step in range(1, 22):
        clock.now += 1
        if step == 4:
            progress.resize(70)
        progress.update(step, {"loss": 1.0})
    assert [line.rpartition(", ")[-1] for line in stream.getvalue().splitlines()[1:]] == [
        "1 min 00 s left",
        "50 s left",
    ]
    assert "step 20 of 70" in stream.getvalue()


def test_of_the_time_left_that_beside_the_boxes_is_said():
    progress, stream, clock = plain()
    progress.begin("seed-0/tangents", 100)
    boxes = 0.0
    for step in range(1, 31):  # a step of a second, a quarter of it in boxes, after a first one all in them
        clock.now += 1.0 if step > 1 else 5.0
        boxes += 0.25 if step > 1 else 5.0
        progress.update(step, {"loss": 1.0, "box_seconds": boxes})
    *_, last = stream.getvalue().splitlines()
    step = int(last.split()[2])
    left = 100 - step
    beside = round(0.75 * left)
    assert last.endswith(f"{duration(left)} left ({duration(beside)} of it beside the box)")


def test_a_first_lesson_is_said_where_it_takes_longer_than_two_seconds():
    progress, stream, clock = plain()
    progress.begin("seed-0/tangents", 300)
    for seconds in (0.0, 0.5):  # one that is over soon is not spoken of
        clock.now += seconds
        progress.lesson(round(seconds * 800), 400)
    progress.lesson(0, 400)
    for done in range(50, 401, 50):
        clock.now += 3
        progress.lesson(done, 400)
    assert stream.getvalue().splitlines()[1:] == [
        "seed-0/tangents: learning the derivative of the box: 3 s, 50 of 400 steps",
        "seed-0/tangents: learning the derivative of the box: 15 s, 250 of 400 steps",
        "seed-0/tangents: learned the derivative of the box in 24 s",
    ]


def test_few_queries_are_a_number_and_no_rate_and_one_is_one():
    progress, stream, clock = plain()
    progress.begin("a", 1)
    clock.now += 20
    progress.update(1, {"loss": 1.0, "queries": 1, "rows": 1})
    progress.end()
    assert stream.getvalue() == "a: 1 step\na: step 1 of 1, loss 1, 1 query, 1 row, 20 s elapsed\n"


def test_a_resumed_stage_counts_speed_from_where_it_resumed():
    progress, stream, clock = plain()
    progress.begin("s", 100, done=50)
    assert stream.getvalue() == "s: 100 steps, 50 done\n"
    clock.now += 1
    progress.update(51, {"loss": 1.0, "queries": 51_000})
    clock.now += 10
    progress.update(61, {"loss": 1.0, "queries": 61_000})
    assert "step 61 of 100, loss 1, 1,000 queries/s, 10 s elapsed, 39 s left" in stream.getvalue()


def test_checks_behind_a_resume_are_counted_and_have_no_rate():
    progress, stream, clock = plain()
    progress.begin("s", 40, done=18)
    progress.update(19, {"loss": 1.0, "queries": 4})
    clock.now += 11
    progress.update(40, {"loss": 1.0, "queries": 16})
    progress.end()
    assert "step 40 of 40, loss 1, 16 queries, 11 s elapsed" in stream.getvalue()


def test_a_counter_makes_a_stage_of_its_own():
    progress, stream, clock = plain()
    count = progress.counter("reference data", unit="frame")
    for done in range(0, 21):
        count(done, 20)
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "reference data: 20 frames",
        "reference data: frame 10 of 20, 10 s elapsed, 10 s left",
        "reference data: frame 20 of 20, 20 s elapsed",
    ]


def test_a_counter_that_is_used_again_has_its_new_total():
    progress, stream, _ = plain()
    count = progress.counter("flows")
    for total in (3, 2):
        for done in range(total + 1):
            count(done, total)
    assert [line.partition(",")[0] for line in stream.getvalue().splitlines()] == [
        "flows: 3 steps", "flows: step 3 of 3", "flows: 2 steps", "flows: step 2 of 2"
    ]  # fmt: skip


def test_live_bars_show_the_figures_and_let_text_through():
    stream = io.StringIO()
    progress = LiveProgress(Console(file=stream, force_terminal=True, width=160), Clock())
    with progress:
        progress.begin("seed-0/zo-sol", 10)
        progress.update(4, {"loss": 0.25, "rows": 1234})
        progress.say("[not markup] 3")
        progress.resize(7)
        progress.end()
    text = stream.getvalue()
    assert "seed-0/zo-sol" in text
    assert "4 of 7" in text
    assert "loss 0.25, 1,234 rows" in text
    assert "[not markup] 3" in text


@pytest.mark.parametrize("stage", ["flows [train]", "flows [/data/flows]"])
def test_a_stage_may_have_brackets_in_its_name(stage):
    stream = io.StringIO()
    with LiveProgress(Console(file=stream, force_terminal=True, width=160), Clock()) as progress:
        progress.counter(stage)(1, 1)
    assert stage in stream.getvalue()


def test_the_kind_follows_the_stream(capsys):
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    with Progress() as silent:
        silent.begin("a", 2)
        silent.update(1, {"loss": 1.0})
        silent.say("text")
        silent.end()
    assert capsys.readouterr().out == ""


def test_durations():
    assert [duration(s) for s in (0.4, 59.6, 190, 7500)] == ["0 s", "1 min 00 s", "3 min 10 s", "2 h 05 min"]
