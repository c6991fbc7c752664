"""`Session`: a simulator with `reset(seed)` and `step(action)`, without a way to set it, as a black box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import cycle, islice
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.session.environment import Answer, Environment, SessionCounts
from blackbox.adapters.session.history import HEAD, WORD, History, is_seen, longest_ways, seen
from blackbox.adapters.session.live import LiveEnvironments, copies
from blackbox.calls import intercepted
from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, DtypeError, OutputError, SessionError
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.outside import exactly, plain
from blackbox.spec import ArraySpec, check_specs

Array = np.ndarray[Any, Any]
PASSES, ALIKE = 4, 16  # in which a check lives through a way; steps over which it compares seeds
STARTS = 4096  # seeds whose first observation is remembered: replays of recorded steps then reset nothing


class Session(BlackBoxFunction):
    """A simulator that can be reset and stepped, but not set: a game, an environment, a running plant.

        box = Session(
            Pendulum,
            observation=ArraySpec("observation", (3,)),
            action=ArraySpec("action", (1,)),
            outputs=[ArraySpec("reward", ())],
            steps=50,
        )

        def objective(policy, batch):
            (seeds,) = batch
            observation, history = box.reset(seeds)  # (rows, 3), and where each row is
            total = 0.0
            for _ in range(50):
                observation, reward, history = box(observation, policy(observation), history)
                total = total - reward
            return total

        gradient = zo.TangentGradient(policy, objective, boxes=[box])

    A row is one step. Its inputs are the observation, the action, and the history: the seed and all actions
    since the reset, as bytes. So a row says all that its answer depends on: it may be asked in any order, any
    number of times, and in any process, and always has the same answer. Hand observation and history on as
    they came.

    A number of environments is kept alive, each at the end of its own history. A row that goes on where one
    of them is takes one step. If there is none (histories branch, more rows are under way than environments
    are kept, or an environment crashed), an environment is reset to the seed of the row and its actions are
    *replayed*. `counts` says how often. With `save` and `load`, snapshots take the place of replays.

    The box cannot be set to another observation than the history's. So estimators that perturb inputs
    (`zo.differentiable` with an estimator, the method row-rge) are refused, and a row with a changed
    observation raises `SessionError`. Take `zo.TangentGradient`, which learns from the observations and
    actions of rows that training runs anyway, or `zo.LossGradient`.

    An environment that raises an error is thrown away, and a new one replays; if that raises as well, the row
    fails. If the process itself may be killed, put a `Parallel` with processes around the box: histories
    travel with their rows, and its workers replay the parts that they lack. If seeds change nothing, so that
    a batch is one row many times, a warning says so once, at the first step.

    Args:
        make: a function that makes an environment. It has `reset(seed)`, which gives the first observation,
            and `step(action)`, which gives the next one, or a tuple of it and the `outputs`. After `reset` an
            environment must do the same for the same seed and actions, whatever it did before.
        observation: the spec of the observation, input and output of a row.
        action: the spec of the action; `step` gets an array of its shape, a number for the shape (), in its
            dtype, which is float64 if it is left open.
        outputs: the specs of further results of `step`, after the observation, such as a reward.
        steps: the most steps after a reset. A history has room for as many actions.
        live: the most environments that are kept alive. As many as there are rows in a call (variants times
            batch), and there are no replays but where histories branch.
        save: `save(environment)` gives a snapshot, whose later changes are not the environment's.
        load: `load(environment, snapshot)` puts any environment of `make` where the snapshot was taken, also
            several times for one snapshot. The environment has been reset to the row's seed before.
        snapshots: the most snapshots that are kept, one for each row that was run; the oldest go first.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Attributes:
        start: the black box of `reset`: seeds, `(rows,)` int64, to observations and histories.
        first: the results of `start` for one seed, as arrays; the last 4,096 seeds are remembered.

    Raises:
        ConfigurationError: `make` cannot be called, a number is out of range, or one of `save` and `load` is
            given alone.
        DefinitionError: the specs make no sense.
        SessionError: from a call, if a row's observation is not the one that its history ended with, a replay
            gave another one, or there are more than `steps` steps.
    """

    settable = False

    def __init__(
        self,
        make: Callable[[], Environment],
        *,
        observation: ArraySpec,
        action: ArraySpec,
        outputs: Sequence[ArraySpec] = (),
        steps: int,
        live: int = 256,
        save: Callable[[Any], Any] | None = None,
        load: Callable[[Any, Any], Any] | None = None,
        snapshots: int = 10_000,
        failures: Policy | None = None,
    ) -> None:
        """Check all settings; the first environment is made when it is needed."""
        owner = type(self).__name__
        if not callable(make):
            raise ConfigurationError(
                f"{owner}, make: expected a function that makes an environment, got {type(make).__name__}. "
                "Give a class, or lambda: environment."
            )
        for name, value in (("steps", steps), ("live", live), ("snapshots", snapshots)):
            check_count(owner, name, value)
        if (save is None) != (load is None):
            missing = "save" if save is None else "load"
            raise ConfigurationError(
                f"{owner}, {missing}: expected save and load together, got one alone. Add {missing}=, or "
                "leave both out: then actions are replayed."
            )
        check_specs(owner, "observation", (observation,))
        check_specs(owner, "action", (action,))
        self._make, self._save, self._load = make, save, load
        self.steps, self.live, self.snapshots = steps, live, snapshots
        self.observation, self.action, self.further = observation, action, tuple(outputs)
        self._dtype = np.dtype(action.dtype or "float64")
        self._width = max(1, math.prod(action.shape)) * self._dtype.itemsize
        history = ArraySpec(
            "history", (HEAD + steps * self._width,), "uint8", differentiable=False, modelled=False
        )
        self.inputs = (observation, action, history)
        self.outputs = (observation, *self.further, history)
        check_specs(owner, "inputs", self.inputs)
        check_specs(owner, "outputs", self.outputs)
        self._environments = LiveEnvironments(
            owner,
            make,
            read=self._read,
            act=self._act,
            width=self._width,
            steps=steps,
            most=live,
            save=save,
            load=load,
            snapshots=snapshots,
        )
        self.first = lru_cache(STARTS)(self._first)
        self.start = SessionStart(self)
        super().__init__(failures=failures)

    @property
    def counts(self) -> SessionCounts:
        """The counts of environments: resets, steps, replays."""
        return self._environments.counts

    def reset(self, seeds: Any, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
        """The observations and histories at which rows begin.

        Args:
            seeds: whole numbers `(*leading,)`: a tensor, a NumPy array or a list.
            dtype: the dtype of the observation, for tensors, if its spec leaves it open; None for torch's
                default. In NumPy it is float64.

        Returns:
            The first observation `(*leading, *shape)` and the history, as tensors unless seeds came in NumPy.

        Raises:
            DtypeError: the seeds are no whole numbers.
            RowFailedError: under "raise", a reset failed.
        """
        numpy = isinstance(seeds, np.ndarray | np.generic)
        whole_numbers = seeds if isinstance(seeds, Tensor) else torch.as_tensor(plain(seeds))
        if (
            whole_numbers.is_floating_point()
            or whole_numbers.is_complex()
            or whole_numbers.dtype is torch.bool
        ):
            raise DtypeError(
                f"{self!r}.reset, seeds: expected whole numbers, got {str(whole_numbers.dtype)[6:]}. "
                "Convert them: seeds.long()."
            )
        # Not a call that gradients see: it depends on seeds alone, and replays of recorded steps make it too.
        with intercepted(None):
            observation, history = self.start.call(whole_numbers.long())
            if numpy:
                return observation.numpy(), history.numpy()
            if self.observation.dtype is None:
                observation = observation.to(dtype or torch.get_default_dtype())
            return observation, history

    def evaluate(self, observation: Array, action: Array, history: Array) -> tuple[Array, ...]:
        """One step: the next observation, the further outputs, and the history with the action in it."""
        try:
            past = History.unpack(history, self._width)
        except ValueError as error:
            raise SessionError(
                f"{self!r}, history: expected an array that the session returned, got one in which {error}. "
                "Hand on the last output as it came."
            ) from None
        if not past.seen:
            raise RuntimeError("the row goes on from one that failed, or from no reset; see box.reset(seeds)")
        if not is_seen(observation, past.seen):
            raise SessionError(
                f"{self!r}, observation: expected the one that the session returned with this history, got "
                f"another after seed {past.seed} and {len(past.actions) // self._width} actions. The "
                "simulator cannot be set to an observation of one's choice. Hand it on unchanged, and "
                "normalise inside the network; take zo.TangentGradient or zo.LossGradient, not differences "
                "at the box's inputs."
            )
        action_bytes = np.ascontiguousarray(action, dtype=self._dtype).tobytes()
        if len(past.actions) + len(action_bytes) > self.steps * self._width:
            raise SessionError(
                f"{self!r}: expected at most {self.steps:,} steps after a reset, got one more. Make it with "
                "a larger steps=."
            )
        answer = self._environments.step(past, action_bytes)
        next_history = History(past.seed, past.actions + action_bytes, seen(answer[0]))
        return (*answer, next_history.pack(self.inputs[2].shape[0], self._width))

    def _first(self, seed: int) -> tuple[Array, Array]:
        (observation,) = self._environments.reset(seed)
        next_history = History(seed, b"", seen(observation))
        return observation, next_history.pack(self.inputs[2].shape[0], self._width)

    def rollouts(
        self, seeds: Sequence[int], actions: Array | Tensor
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Rows along given actions, which a tangent can learn from before training: `tangent.fit`.

        They are rows like others: the ledger counts them, and the policy for failed rows holds. Rows after a
        failed one are left out.

        Args:
            seeds: the seeds, `(rows,)`.
            actions: the actions of each step, `(rows, steps, *shape)`; results are tensors of its dtype if it
                is a tensor.

        Returns:
            The inputs observation, action and history, and the answers of the box, `(rows * steps, *shape)`
            each: the first step of all rows, then the second.

        Raises:
            RowFailedError: under "raise", a row failed.
            SessionError: there are more than `steps` steps.
        """
        seeds_tensor = torch.as_tensor(seeds, dtype=torch.int64)
        if isinstance(actions, Tensor):
            observation, history = self.reset(
                seeds_tensor, actions.dtype if actions.is_floating_point() else None
            )
        else:
            try:
                actions = exactly(actions, self._dtype)
            except (TypeError, ValueError) as error:
                raise DtypeError(
                    f"{self!r}.rollouts, actions: expected numbers of {self._dtype}, got others ({error}). "
                    "Convert them first."
                ) from None
            observation, history = self.reset(seeds_tensor.numpy())
        steps: list[tuple[Any, ...]] = []
        for step in range(actions.shape[1]):
            row = (observation, actions[:, step], history)
            answers = self(*row)
            steps.append((*row, *answers))
            observation, history = answers[0], answers[-1]
        join = torch.cat if isinstance(actions, Tensor) else np.concatenate
        columns = [join(column) for column in zip(*steps, strict=True)]
        led = (columns[2][:, 2 * WORD : HEAD] != 0).any(1)  # zeros come of a failed row
        columns = [column[led] for column in columns]
        return tuple(columns[:3]), tuple(columns[3:])

    def samples(self, seeds: Sequence[int], actions: Array | Tensor) -> tuple[Any, ...]:
        """Inputs like those in training, for `check_black_box`: those of `rollouts`."""
        return self.rollouts(seeds, actions)[0]

    def draw(self, rows: int, generator: np.random.Generator) -> tuple[Array, ...]:
        """Rows along random actions, for `check_black_box` without samples; four of each seed."""
        steps = min(self.steps, 4)
        seeds = range(-(-rows // steps))
        actions = np.stack([[self.drawn_action(generator) for _ in range(steps)] for _ in seeds])
        # seed by seed, so that no environment has to go back, whatever its reset forgets
        parts = [self.samples([seed], way[None]) for seed, way in zip(seeds, actions, strict=True)]
        return tuple(np.concatenate(column)[:rows] for column in zip(*parts, strict=True))

    def drawn_action(self, generator: np.random.Generator) -> Array:
        """A random action: usual numbers (`ArraySpec.usual_numbers`), or 0 and 1."""
        if not self.action.floating:
            return generator.integers(0, 2, self.action.shape)
        return self.action.usual_numbers(generator)

    def forgets(self, histories: Array, generator: np.random.Generator | None, seconds: float) -> str | None:
        """Describe what a reset or a snapshot forgets, for `check_black_box`; None for nothing that shows.

        Args:
            histories: `(rows, size)`, the last input of rows; the longest of four seeds are lived through.
            generator: the generator of random actions, which go on from there to 32 steps; None for none.
            seconds: how many seconds one of the ways may then take to go on to `steps`, with its actions
                again: the end of an episode shows there.

        Raises:
            Exception: an environment raises it.
        """
        ways, began, steps_before = self._ways(histories, generator), monotonic(), self.counts.steps
        other_ways = [*ways[1:], *ways[:1]]
        findings = (
            self._environments.forgets(*way, other_way)
            for way, other_way in zip(ways, other_ways, strict=True)
        )
        words = next((words for words in findings if words is not None), None)
        lived = self.counts.steps - steps_before
        if words is not None or not lived:
            return words
        (seed, way), pace = ways[0], (monotonic() - began) / lived
        longer = [*islice(cycle(way), int(min(self.steps, seconds / PASSES / max(pace, 1e-9))))]
        with suppress(Exception):  # an episode may end before, and steps after its end raise
            return self._environments.forgets(seed, longer, other_ways[0]) if len(longer) > len(way) else None

    def copies(self, histories: Array) -> str | None:
        """Explain the fault of seeds with the same answers, for `check_black_box`; None if there is none.

        Args:
            histories: `(rows, size)`, the last input of rows; up to four of their seeds are compared.
        """
        ways = self._ways(histories, None)
        if len(ways) < 2:
            return None
        seeds, actions = [seed for seed, _ in ways], islice(cycle(ways[0][1]), min(self.steps, ALIKE))
        return copies(seeds) if self._environments.alike(seeds, [*actions]) else None

    def _ways(self, histories: Array, generator: np.random.Generator | None) -> list[tuple[int, list[bytes]]]:
        """Seeds and actions of the longest rows of up to four seeds; drawn actions go on from there."""
        ways = longest_ways(histories, self._width)[:4]
        for _, way in ways:
            while generator is not None and len(way) < min(self.steps, 32):
                way.append(np.ascontiguousarray(self.drawn_action(generator), dtype=self._dtype).tobytes())
        return [(seed, way) for seed, way in ways if way]

    def close(self) -> None:
        """Close all live environments; the next row makes new ones."""
        self._environments.close()

    @property
    def identity(self) -> tuple[Callable[..., Any], int]:
        """The identity of the answers: the way environments are made, and the steps of a row."""
        return self._make, self.steps

    def _read(self, answer: Any, stepped: bool) -> Answer:
        """Read an environment's answer, copied: it may write to its arrays in the next step."""
        specs = (self.observation, *self.further) if stepped else (self.observation,)
        of_gym = isinstance(answer, tuple) and any(isinstance(part, dict) for part in answer[-1:])
        several = len(specs) > 1 or of_gym
        parts = answer if isinstance(answer, tuple) and (several or len(answer) == 1) else (answer,)
        if len(parts) != len(specs):
            what, names = ("step", ", ".join(s.name for s in specs)) if stepped else ("reset", specs[0].name)
            mend = "Return the observation alone, or a tuple with one value for each further output."
            if of_gym:  # or of Gymnasium
                mend = (
                    "The last one is the info of an environment of Gym: take blackbox.adapters.Gymnasium, or "
                    "return what the specs name alone."
                )
            raise OutputError(f"{self!r}: expected {what} to give {names}, got {len(parts)} values. {mend}")
        return tuple(self._array(spec, part) for spec, part in zip(specs, parts, strict=True))

    def _array(self, spec: ArraySpec, part: Any) -> Array:
        try:
            array = exactly(part, spec.dtype or np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OutputError(
                f"{self!r}, {spec.name!r}: expected numbers from the environment, got {type(part).__name__} "
                f"({error}). Return an array of {spec.dtype or 'floats'}, or mend the spec's dtype."
            ) from None
        if array.shape != spec.shape:
            raise OutputError(
                f"{self!r}, {spec.name!r}: expected shape {spec.shape} from the environment, got "
                f"{array.shape}. Mend the spec, or what the environment returns."
            )
        return array

    def _act(self, action: bytes) -> Any:
        array = np.frombuffer(action, self._dtype).reshape(self.action.shape).copy()
        return array if self.action.shape else array.item()

    def _settings(self) -> dict[str, Any]:
        return {
            "observation": self.observation,
            "action": self.action,
            "outputs": self.further,
            "steps": self.steps,
            "live": self.live,
            "save": self._save,
            "load": self._load,
            "snapshots": self.snapshots,
            "failures": self.failures,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings; another process makes environments of its own."""
        return _rebuild, (type(self), self._make, self._settings())

    def __repr__(self) -> str:
        """Show the maker of the environments, and how long they live."""
        name = getattr(self._make, "__qualname__", None) or type(self._make).__name__
        return f"{type(self).__name__}({name}, steps={self.steps})"


class SessionStart(BlackBoxFunction):
    """Resets of a `Session`, as a box of its own with a ledger of its own: seeds to where rows begin."""

    inputs = (ArraySpec("seed", (), "int64"),)

    def __init__(self, session: Session) -> None:
        observation, *_, history = session.outputs
        if observation.dtype is None:  # rounded where it is used, not here
            observation = ArraySpec(observation.name, observation.shape, "float64", scale=observation.scale)
        self._session, self.outputs = session, (observation, history)

    @property
    def failures(self) -> Policy:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The policy for failed rows, which is the session's."""
        return self._session.failures

    @failures.setter
    def failures(self, policy: Policy) -> None:
        self._session.failures = policy

    def evaluate(self, seed: Array) -> tuple[Array, Array]:
        """Reset the simulator to one seed."""
        return self._session.first(int(seed))

    def __repr__(self) -> str:
        """Show the session of the resets."""
        return f"{self._session!r}.start"


def _rebuild(kind: type[Session], make: Callable[[], Environment], settings: dict[str, Any]) -> Session:
    return kind(make, **settings)
