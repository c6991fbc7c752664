"""A simulator without a way to set it is a function of (observation, action, history), whatever is asked."""

from __future__ import annotations

import os
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from blackbox import ArraySpec, Budgeted, Cached, Parallel
from blackbox.adapters import Session
from blackbox.errors import (
    ConfigurationError,
    DefinitionError,
    DtypeError,
    OutputError,
    RowFailedError,
    SessionError,
)
from tests.blackbox.adapters.session.environments import Hidden, Pendulum, hidden, pendulum
from tests.blackbox.boxes import ErrorCase, error_table


def rolled(box: Any, seeds: Any, actions: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """All rows `(observation, action, history, *answers)` of rollouts with actions `(rows, steps, 1)`."""
    observation, history = box.reset(seeds, dtype=actions.dtype)
    found = []
    for action in actions.unbind(1):
        answers = box(observation, action, history)
        found.append((observation, action, history, *answers))
        observation, *_, history = answers
    return found


def plain(seed: int, actions: torch.Tensor) -> list[tuple[np.ndarray, float]]:
    """The same by the simulator itself."""
    environment = Pendulum()
    environment.reset(seed)
    answers = []
    for action in actions:
        seen, paid = environment.step(action.double().numpy())
        answers.append((seen.copy(), paid))
    return answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rollout_is_the_simulator_s_own(dtype):
    box, actions = pendulum(), torch.randn(3, 10, 1, dtype=dtype)
    rows = rolled(box, torch.tensor([4, 5, 6]), actions)
    for place, seed in enumerate((4, 5, 6)):
        for (_, _, _, observation, cost, _), (seen, paid) in zip(
            rows, plain(seed, actions[place]), strict=True
        ):
            assert torch.equal(observation[place], torch.tensor(seen).to(dtype))
            assert cost[place] == torch.tensor(paid).to(dtype)
    counts = box.counts
    assert (counts.made, counts.resets, counts.steps, counts.replays) == (3, 3, 30, 0)
    assert box.ledger.rows_run == 30 and box.start.ledger.rows_run == 3


@pytest.mark.parametrize("live", [1, 3, 64])
def test_rows_in_any_order_any_block_and_any_number_of_times_give_the_same_bits(live):
    rows = rolled(pendulum(), [1, 2, 3, 3], torch.randn(4, 10, 1))
    asked, answers = (
        tuple(torch.cat(column) for column in zip(*part, strict=True))
        for part in ([row[:3] for row in rows], [row[3:] for row in rows])
    )
    box, generator = pendulum(live=live), torch.Generator().manual_seed(0)
    for _ in range(2):
        order = torch.randperm(len(asked[0]), generator=generator)
        for part in order.split(7):
            given = box(*(array[part] for array in asked))
            assert all(torch.equal(one, whole[part]) for one, whole in zip(given, answers, strict=True))
    assert box.counts.replays > 0 and box.counts.made <= live


def test_branches_replay_and_equal_rows_do_not():
    box = pendulum()
    rows = rolled(box, [0], torch.randn(1, 5, 1))
    observation, action, history, *answers = rows[-1]
    steps = box.counts.steps
    assert all(torch.equal(a, b) for a, b in zip(box(observation, action, history), answers, strict=True))
    assert (box.counts.steps, box.counts.repeated, box.counts.replays) == (steps, 1, 0)
    box(observation, action + 1, history)  # a branch after four steps
    assert (box.counts.steps, box.counts.replays, box.counts.replayed_steps) == (steps + 5, 1, 4)


def test_histories_with_equal_observations_are_told_apart():
    """The observation after one step is the same for all pushes; what comes next is not."""
    box = hidden(live=1)
    pushes = torch.tensor([1.0, 2.0, 3.0])
    place, history = box.reset([7, 7, 7])
    place, history = box(place, pushes, history)
    assert place.tolist() == [7.0, 7.0, 7.0]
    place, history = box(place, pushes, history)
    assert place.tolist() == [8.0, 9.0, 10.0]


SNAPSHOTS: dict[str, Any] = {
    "save": lambda e: (e.angle, e.speed),
    "load": lambda e, state: vars(e).update(angle=state[0], speed=state[1]),
}


def test_with_snapshots_rows_are_replayed_for_comparison_alone():
    actions = torch.randn(6, 10, 1)
    plainly = rolled(pendulum(), range(6), actions)
    box = pendulum(live=2, **SNAPSHOTS)
    for one, other in zip(plainly, rolled(box, range(6), actions), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    counts = box.counts
    assert counts.restored > 40
    assert counts.steps - counts.compared_steps == 60
    assert counts.compared == 2  # at the first restored row, and at histories of 4; of 10 there are none


class Integral:
    """What an actuator adds up is not in the observation before the next step."""

    def reset(self, seed: int) -> float:
        self.place, self.pushed = 0.1 * seed, 0.0
        return self.place

    def step(self, push: float) -> float:
        self.pushed += push
        self.place += 0.1 * self.pushed
        return self.place


class Limited(Hidden):
    """Ends at its seventh step by a count that snapshots do not have."""

    def reset(self, seed: int) -> float:
        self.steps = 0
        return super().reset(seed)

    def step(self, push: float) -> float:
        self.steps += 1
        return super().step(push) if self.steps < 7 else 0.0


class Weighted(Hidden):
    """Has a mass of its seed, which a snapshot of what moves does not have."""

    def reset(self, seed: int) -> float:
        self.mass = 1.0 + seed
        return super().reset(seed)

    def step(self, push: float) -> float:
        return super().step(push / self.mass)


def moving(environment: Any) -> tuple[float, float]:
    return environment.place, environment.speed


def move(environment: Any, state: tuple[float, float]) -> None:
    environment.place, environment.speed = state


def place(environment: Any) -> float:
    return environment.place


def put(environment: Any, state: float) -> None:
    environment.place = state


def put_still(environment: Any, state: float) -> None:
    environment.place, environment.pushed = state, 0.0


@pytest.mark.parametrize("live", [1, 3])
@pytest.mark.parametrize(
    "kind, save, load",
    [
        (Integral, place, put),
        (Integral, place, put_still),
        (Limited, moving, move),
    ],
)
def test_no_answer_of_a_snapshot_that_forgets_differs_from_a_replay(kind, save, load, live):
    """It is refused before the first wrong answer, however late what is forgotten shows."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(6, 10, dtype=torch.float64, generator=generator)
    expected = [row[3] for row in rolled(hidden(kind), range(6), actions)]
    answers = []
    box = hidden(kind, live=live, save=save, load=load)
    observation, history = box.reset(range(6), dtype=torch.float64)
    with pytest.raises(SessionError, match="load: expected an environment that goes on"):
        for action in actions.unbind(1):
            observation, history = box(observation, action, history)
            answers.append(observation)
    for one, other in zip(answers, expected, strict=False):
        assert torch.equal(one, other)


def test_no_row_goes_on_with_an_environment_that_was_closed_as_its_snapshot_failed():
    failing = []

    class Closing(Hidden):
        def close(self):
            self.place = self.speed = 0.0

    def saved(environment):
        if failing:
            raise OSError(failing.pop())
        return moving(environment)

    box, action, places = hidden(Closing, save=saved, load=move), np.ones(1), []
    observation, history = box.reset(np.array([3]))
    failing.append("no space")
    with pytest.raises(RowFailedError, match="no space"):
        box(observation, action, history)
    for _ in range(4):
        observation, history = box(observation, action, history)
        places.append(float(observation[0]))
    assert places == [3.0, 4.0, 6.0, 9.0]  # 3, and then 1, 2 and 3 further


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("at", range(1, 42))
def test_an_environment_that_breaks_off_once_costs_no_row_also_where_snapshots_are_compared(at):
    class Breaking(Hidden):
        steps = 0

        def step(self, push):
            Breaking.steps += 1
            if Breaking.steps == at:
                raise OSError("away")
            return super().step(push)

    actions = torch.rand(3, 6, dtype=torch.float64)
    expected = rolled(hidden(Hidden), range(3), actions)
    found = rolled(hidden(Breaking, live=1, save=moving, load=move), range(3), actions)
    assert Breaking.steps > at
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[3], other[3])


@pytest.mark.parametrize("live", [1, 3])
def test_what_an_environment_has_of_its_seed_need_not_be_in_a_snapshot(live):
    actions = torch.rand(6, 10, dtype=torch.float64)
    box = hidden(Weighted, live=live, save=moving, load=move)
    for one, other in zip(
        rolled(box, range(6), actions), rolled(hidden(Weighted), range(6), actions), strict=True
    ):
        assert torch.equal(one[3], other[3])
    assert box.counts.restored > 20


def test_snapshots_that_went_are_replayed_from_the_last_that_is_there():
    box = pendulum(live=1, snapshots=1, **SNAPSHOTS)
    (*_, last) = rolled(box, [0], torch.randn(1, 5, 1))
    other = pendulum()
    box.reset([1])  # takes the one environment and the one snapshot
    assert torch.equal(box(*last[:3])[0], other(*last[:3])[0])
    assert box.counts.replayed_steps == 4


class Crashing(Pendulum):
    """An environment breaks at its seventh step, whatever was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 7

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the simulator is gone")
        return super().step(action)

    def close(self) -> None:
        self.left = -1


def test_an_environment_that_breaks_is_replaced_and_its_actions_replayed():
    actions = torch.randn(2, 7, 1)
    box = pendulum(Crashing, live=2)
    rolled(box, [0, 1], actions[:, :6])  # one step is left to each
    assert box.counts.crashes == 0
    for one, other in zip(rolled(box, [0, 1], actions), rolled(pendulum(), [0, 1], actions), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert box.counts.crashes == 2 and box.counts.made == 4


def test_a_row_fails_where_a_new_environment_breaks_too():
    box = pendulum(Crashing, failures="keep")
    rows = rolled(box, [0, 1], torch.randn(2, 9, 1))
    assert [bool(row[3].isnan().any()) for row in rows] == [False] * 7 + [True] * 2
    assert box.ledger.rows_failed == 2 and box.ledger.rows_skipped == 2
    with pytest.raises(RowFailedError, match="the simulator is gone"):
        rolled(pendulum(Crashing), [0], torch.randn(1, 9, 1))


class Exiting(Pendulum):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        raise SystemExit(3)


def test_an_environment_that_ends_python_is_a_failed_row():
    with pytest.raises(RowFailedError, match=r"the simulator called sys.exit\(3\)"):
        rolled(pendulum(Exiting), [0], torch.randn(1, 1, 1))


def test_ctrl_c_leaves_no_environment_half_way():
    class Stopped(Pendulum):
        stop = False

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
            given = super().step(action)
            if Stopped.stop:
                raise KeyboardInterrupt
            return given

    box, actions = pendulum(Stopped), torch.randn(1, 4, 1)
    *_, last = rolled(box, [0], actions)
    row = last[3], actions[:, 0], last[5]
    Stopped.stop = True
    with pytest.raises(KeyboardInterrupt):
        box(*row)
    Stopped.stop = False
    other = pendulum()
    assert torch.equal(box(*row)[0], other(*row)[0])


def test_pickled_it_answers_the_same_rows_by_replay():
    box = pendulum()
    *_, last = rolled(box, [3], torch.randn(1, 6, 1))
    other = pickle.loads(pickle.dumps(box))
    assert repr(other) == repr(box) == "Session(Pendulum, steps=10)"
    assert all(torch.equal(a, b) for a, b in zip(other(*last[:3]), last[3:], strict=True))
    assert other.counts.replayed_steps == 5


def test_a_fork_has_environments_of_its_own():
    box = pendulum()
    *_, last = rolled(box, [3], torch.randn(1, 6, 1))
    row = last[3], last[1], last[5]
    child = os.fork()
    if child == 0:
        box(*row)
        os._exit(0 if box.counts.replays == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_take_turns():
    rows = rolled(pendulum(), range(8), torch.randn(8, 10, 1))
    box = pendulum(live=2)
    with ThreadPoolExecutor(4) as pool:
        for row, given in zip(rows, pool.map(lambda row: box(*row[:3]), rows), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(given, row[3:], strict=True))


def test_it_can_be_cached_and_budgeted(tmp_path):
    cached = Cached(pendulum(), tmp_path / "answers")
    box = Budgeted(cached, rows=10)
    assert not box.settable
    rows = rolled_in(box, pendulum(), torch.randn(2, 5, 1))
    again = rolled_in(box, pendulum(), torch.cat([row[1][:, None] for row in rows], 1))
    for one, other in zip(rows, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert box.ledger.rows_run == 10 and box.ledger.rows_cached == 10


def rolled_in(box: Any, start: Session, actions: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    observation, history = start.reset([0, 1], dtype=actions.dtype)
    found = []
    for action in actions.unbind(1):
        observation, *_, history = answers = box(observation, action, history)
        found.append((answers[0], action, *answers))
    return found


def test_rollouts_are_rows_and_their_answers():
    box, actions = pendulum(), torch.randn(3, 4, 1)
    inputs, answers = box.rollouts([1, 2, 3], actions)
    assert box.ledger.rows_run == 12 and box.counts.replays == 0
    for step, row in enumerate(rolled(pendulum(), [1, 2, 3], actions)):
        part = slice(3 * step, 3 * step + 3)
        found = [array[part] for array in (*inputs, *answers)]
        assert all(torch.equal(a, b) for a, b in zip(found, row, strict=True))


def test_samples_leave_out_what_comes_after_a_failed_row():
    box = pendulum(Crashing, failures="keep")
    observation, action, _ = box.samples([1, 2], np.random.default_rng(0).normal(size=(2, 9, 1)))
    assert observation.shape == (16, 3) and np.isfinite(observation).all() and len(action) == 16
    assert box.ledger.rows_failed == 2


def test_an_observation_keeps_the_dtype_of_its_spec():
    spec: Any = {"observation": ArraySpec("place", (), "float64"), "action": ArraySpec("push", (), "float64")}
    box = Session(Hidden, **spec, steps=3)
    place, history = box.reset([1, 2])
    assert place.dtype is torch.float64
    assert box(place, torch.zeros(2, dtype=torch.float64), history)[0].tolist() == [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_workers_replay_what_they_have_not_lived_through(kind):
    actions = torch.randn(6, 4, 1)
    plainly, start = rolled(pendulum(), range(6), actions), pendulum()
    with kind(2, **({"mp_context": get_context("spawn")} if kind is ProcessPoolExecutor else {})) as pool:
        box = Parallel(pendulum(), pool, block=2)
        observation, history = start.reset(range(6))
        for action, row in zip(actions.unbind(1), plainly, strict=True):
            answers = box(observation, action, history)
            assert all(torch.equal(a, b) for a, b in zip(answers, row[3:], strict=True))
            observation, *_, history = answers
    assert box.ledger.rows_run == 24


def test_seeds_come_as_lists_arrays_and_tensors_with_any_leading_axes():
    box = pendulum()
    tensor, history = box.reset([[1, 2], [3, 4]])
    assert tensor.shape == (2, 2, 3) and tensor.dtype == torch.float32 and history.dtype == torch.uint8
    array, _ = box.reset(np.array([1, 2]))
    assert isinstance(array, np.ndarray) and array.dtype == np.float64
    assert torch.equal(tensor[0], torch.tensor(array).float())


def test_that_most_steps_are_replays_is_said_once():
    box, actions = pendulum(steps=30, live=4), torch.randn(12, 30, 1)
    with pytest.warns(
        RuntimeWarning, match=r"Session: .* steps were replays: .* the 4 environments .* live="
    ):
        rolled(box, range(12), actions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rolled(box, range(12), actions)


def test_close_closes_what_is_alive():
    box = pendulum(Crashing)
    *_, last = rolled(box, [0], torch.randn(1, 3, 1))
    box.close()
    assert torch.isfinite(box(last[3], last[1], last[5])[0]).all() and box.counts.made == 2


class Wandering(Pendulum):
    """Not seeded by reset."""

    made = 0

    def reset(self, seed: int) -> np.ndarray:
        type(self).made += 1
        return super().reset(type(self).made)


def changed() -> None:
    box = pendulum(failures="keep")
    observation, history = box.reset([0, 1])
    box(observation + 1e-6, torch.zeros(2, 1), history)


def changed_in_float64() -> None:
    box = pendulum(failures="keep")
    observation, history = box.reset([0, 1], dtype=torch.float64)
    box(observation + 1e-14, torch.zeros(2, 1, dtype=torch.float64), history)


def unlike() -> None:
    box = pendulum(Wandering)
    *_, last = rolled(box, [0], torch.randn(1, 3, 1))
    box(last[0], last[1] + 1, last[2])


class Heavy(Pendulum):
    """Begins as the pendulum does, and goes on otherwise."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        return super().step(0.5 * action)


def of_another_going_on() -> None:
    box, action = pendulum(Heavy), torch.randn(1, 4, 1)
    rolled(box, [0], action[:, :3])  # lives at the end of the same seed and actions
    box(*rolled(pendulum(), [0], action)[3][:3])


def of_another_repeated() -> None:
    box, action = pendulum(Heavy), torch.randn(1, 3, 1)
    rolled(box, [0], action)
    box(*rolled(pendulum(), [0], action)[2][:3])


def of_another_with_snapshots() -> None:
    box, action = pendulum(Heavy, live=1, **SNAPSHOTS), torch.randn(1, 4, 1)
    rolled(box, [0], action[:, :3])
    box.reset([1])
    box(*rolled(pendulum(), [0], action)[3][:3])


def forgotten() -> None:
    """The snapshot has the angle alone."""
    settings: Any = {"save": lambda e: e.angle, "load": lambda e, angle: setattr(e, "angle", angle)}
    rolled(pendulum(live=1, **settings), [0, 1], torch.randn(2, 4, 1))


def not_copied() -> None:
    settings: Any = {"save": vars, "load": lambda e, state: vars(e).update(state)}
    rolled(pendulum(live=1, **settings), [0, 1], torch.randn(2, 4, 1))


def longer() -> None:
    rolled(pendulum(steps=3), [0], torch.randn(1, 4, 1))


def other_shape() -> None:
    rolled(hidden(Pendulum), [0], torch.randn(1, 1))


class Silent(Pendulum):
    def step(self, action: np.ndarray) -> Any:
        return super().step(action)[0]


def foreign() -> None:
    box = pendulum()
    observation, history = box.reset([0])
    box(observation, torch.zeros(1, 1), torch.full_like(history, 255))


STATE = ArraySpec("history", (3,))
ERRORS = [
    ErrorCase("observation", changed, SessionError, ["cannot be set", "unchanged", "zo.TangentGradient"]),
    ErrorCase("observation, float64", changed_in_float64, SessionError, ["seed 0 and 0 actions"]),
    ErrorCase("not reproducible", unlike, SessionError, ["seed 0 and 2 actions", "reset(seed)"]),
    ErrorCase("another's, live", of_another_going_on, SessionError, ["seed 0 and 3 actions", "this session"]),
    ErrorCase("another's, repeated", of_another_repeated, SessionError, ["seed 0 and 2 actions"]),
    ErrorCase("another's, snapshot", of_another_with_snapshots, SessionError, ["seed 0 and 3 actions"]),
    ErrorCase("half a snapshot", forgotten, SessionError, ["load", "by a replay", "leave save and load out"]),
    ErrorCase("a snapshot that moves on", not_copied, SessionError, ["copy"]),
    ErrorCase("too long", longer, SessionError, ["at most 3 steps", "steps="]),
    ErrorCase("history", foreign, SessionError, ["history", "as it came"]),
    ErrorCase("shape", other_shape, OutputError, ["'place'", "()", "(3,)"]),
    ErrorCase(
        "outputs",
        lambda: rolled(pendulum(Silent), [0], torch.randn(1, 1, 1)),
        OutputError,
        ["step to give observation, cost", "1 value"],
    ),
    ErrorCase("seeds", lambda: pendulum().reset([0.5]), DtypeError, ["whole numbers", ".long()"]),
    ErrorCase("make", lambda: pendulum(Pendulum()), ConfigurationError, ["make", "Pendulum"]),
    ErrorCase("steps", lambda: pendulum(steps=0), ConfigurationError, ["steps", ">= 1"]),
    ErrorCase("live", lambda: pendulum(live=0), ConfigurationError, ["live", ">= 1"]),
    ErrorCase("save", lambda: pendulum(save=vars), ConfigurationError, ["load", "replayed"]),
    ErrorCase(
        "names",
        lambda: Session(Pendulum, observation=STATE, action=STATE, steps=1),
        DefinitionError,
        ["different names", "history"],
    ),
]


@error_table(ERRORS)
def test_errors(case):
    case.check()


def test_a_state_without_derivative_alone_may_be_left_out_of_models():
    with pytest.raises(DefinitionError, match="differentiable=False"):
        ArraySpec("x", (), modelled=False)
    assert not ArraySpec("key", (), "int64", modelled=False).context
    assert ArraySpec("rate", (), differentiable=False).context and not ArraySpec("x", ()).context
