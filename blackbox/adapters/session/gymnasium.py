"""`Gymnasium`: an environment of Gymnasium as a black box, its spaces read as specs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox.adapters.session.environment import Answer
from blackbox.adapters.session.session import Session
from blackbox.errors import BoundsWarning, ConfigurationError, OutputError
from blackbox.extras import import_extra
from blackbox.failures import Policy
from blackbox.notices import Notice, Notices
from blackbox.outside import exactly
from blackbox.spec import DTYPES, ArraySpec


class Gymnasium(Session):
    """An environment of Gymnasium; needs the extra `gymnasium`.

        box = Gymnasium("Pendulum-v1", steps=50)
        observation, history = box.reset(seeds)
        observation, reward, terminated, truncated, history = box(observation, action, history)

    See `Session` for what a row is, what is kept alive, and how gradients are found. The observation and
    action have the shapes of their spaces, and float actions reach the environment in their space's dtype,
    neither clipped nor scaled. A warning says once if numbers lie beyond their space by more than its width.
    After an episode has ended, rows go on: the observation stays, the reward is zero, and the flags keep
    their values.

    Args:
        environment: the name of a registered environment, or a function that makes one, such as
            `lambda: TimeLimit(MyEnvironment(), 100)`; spaces are Box, Discrete, MultiDiscrete or MultiBinary.
        steps: the most steps after a reset; None for the environment's own `max_episode_steps`.
        live: the most environments that are kept alive.
        save: `save(environment)` gives a snapshot of the environment, as in `Session`.
        load: `load(environment, snapshot)` puts it back.
        snapshots: the most snapshots that are kept.
        failures: "raise" or "keep", as in `BlackBoxFunction`.
        **settings: arguments of `gymnasium.make`, if a name is given.

    Raises:
        MissingExtraError: Gymnasium is not installed.
        ConfigurationError: there is no such environment, it has a space of another kind, or it has no number
            of steps of its own and none is given.
    """

    def __init__(
        self,
        environment: str | Callable[[], Any],
        *,
        steps: int | None = None,
        live: int = 256,
        save: Callable[[Any], Any] | None = None,
        load: Callable[[Any, Any], Any] | None = None,
        snapshots: int = 10_000,
        failures: Policy | None = None,
        **settings: Any,
    ) -> None:
        """Make one environment to read its spaces."""
        import_extra("Gymnasium", "gymnasium", "gymnasium")
        making = _Making(environment, tuple(settings.items()))
        try:
            example = making.made()
        except Exception as error:
            raise ConfigurationError(
                f"Gymnasium, environment: expected one that gymnasium can make, got {environment!r} "
                f"({type(error).__name__}: {error}). See gymnasium.pprint_registry() for names."
            ) from error
        spec = getattr(example, "spec", None)
        if steps is None and spec:
            steps = spec.max_episode_steps
        if steps is None:
            raise ConfigurationError(
                "Gymnasium, steps: expected a number, as the environment has no max_episode_steps, got None. "
                "Give the most steps after a reset."
            )
        observation = _spec("observation", example.observation_space)
        self._environment, self._keywords = environment, settings
        action = _spec("action", example.action_space)
        self._space, self._notices = example.action_space, Notices()
        self._limits = {
            name: (str(space), *limits_of(space))
            for name, space in (("observation", example.observation_space), ("action", example.action_space))
        }
        example.close()
        super().__init__(
            making,
            observation=observation,
            action=action,
            outputs=(
                ArraySpec("reward", ()),
                ArraySpec("terminated", (), "bool"),
                ArraySpec("truncated", (), "bool"),
            ),
            steps=steps,
            live=live,
            save=None if save is None else _Saving(save),
            load=None if load is None else _Loading(load),
            snapshots=snapshots,
            failures=failures,
        )
        self._functions = save, load

    def _read(self, answer: Any, stepped: bool) -> Answer:
        """Read an environment's answer, and warn once where its observations leave their space by far."""
        parts = super()._read(answer, stepped)
        mend = "Mend the environment's observation_space, or the units of what it gives."
        self._look("observation", parts[0], mend)
        return parts

    def _act(self, action: bytes) -> Any:
        """An action as `step` takes it; said once where actions leave their space by far."""
        array = super()._act(action)
        mend = "Most clip such actions, and what is clipped has no derivative: bound it, such as by tanh."
        self._look("action", array, mend)
        return array

    def _look(self, name: str, values: Any, mend: str) -> None:
        space, lowest, highest = self._limits[name]
        if name in self._notices.said or not np.any((values < lowest) | (values > highest)):
            return
        words = (
            f"{self!r}, {name}: expected numbers of its space, {space}, got some far beyond it, "
            f"up to {np.abs(values).max():.4g}. {mend} This is said once."
        )
        self._notices.say(Notice(name, words, BoundsWarning))

    def drawn_action(self, generator: np.random.Generator) -> np.ndarray:
        """A random action of the environment's space."""
        self._space.seed(int(generator.integers(2**31)))
        return np.asarray(self._space.sample())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle name and settings."""
        save, load = self._functions
        settings = {
            **self._keywords,
            "steps": self.steps,
            "live": self.live,
            "save": save,
            "load": load,
            "snapshots": self.snapshots,
            "failures": self.failures,
        }
        return _rebuild, (type(self), self._environment, settings)

    def __repr__(self) -> str:
        """The environment's name."""
        name = self._environment
        label = repr(name) if isinstance(name, str) else getattr(name, "__qualname__", type(name).__name__)
        return f"Gymnasium({label}, steps={self.steps})"


OLD = (
    "In Gym, before Gymnasium, reset took no seed and gave the observation alone, and step gave four values "
    "with one flag, done. Bring the environment up to date, or wrap it in a class that gives five."
)


@dataclass(frozen=True)
class _Making:
    """Makes environments for a `Session`."""

    environment: str | Callable[[], Any]
    settings: tuple[tuple[str, Any], ...]

    def made(self) -> Any:
        """Make the environment as Gymnasium does."""
        if callable(self.environment):
            return self.environment()
        gymnasium = import_extra("Gymnasium", "gymnasium", "gymnasium")
        return gymnasium.make(self.environment, **dict(self.settings))

    def __call__(self) -> _Episode:
        return _Episode(self.made())


class _Episode:
    """An environment with `reset(seed)` and `step(action)`, which stays at its end."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.discrete = not hasattr(environment.action_space, "high")
        self.last: tuple[Any, bool, bool] = (None, False, False)

    def reset(self, seed: int) -> Any:
        try:
            answer = self.environment.reset(seed=seed)
        except TypeError as error:
            if "seed" not in str(error):
                raise
            raise OutputError(f"Gymnasium: expected reset to take a seed, got: {error}. {OLD}") from error
        observation, _ = _parts(answer, "reset", "observation, info")
        self.last = np.array(observation, subok=True), False, False
        return observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        observation, terminated, truncated = self.last
        if terminated or truncated:
            return observation, 0.0, terminated, truncated
        if not self.discrete:
            action = exactly(action, self.environment.action_space.dtype)
        names = "observation, reward, terminated, truncated, info"
        observation, reward, terminated, truncated, _ = _parts(self.environment.step(action), "step", names)
        self.last = np.array(observation, subok=True), bool(terminated), bool(truncated)
        return observation, float(reward), bool(terminated), bool(truncated)

    def close(self) -> None:
        self.environment.close()


def _parts(answer: Any, method: str, names: str) -> tuple[Any, ...]:
    """Check that an environment's answer has the values of Gymnasium's interface, and return it."""
    count = len(names.split(", "))
    if isinstance(answer, tuple | list):
        if len(answer) == count:
            return tuple(answer)
        got = f"{len(answer)} values"
    else:
        got = type(answer).__name__
    raise OutputError(f"Gymnasium: expected {method} to give {names}, got {got}. {OLD}")


def limits_of(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest numbers that are not far beyond a space: its ends, and its width for floats.

    Where a side is open, the width is the size of the other one, or 1.
    """
    if hasattr(space, "high"):
        low, high = np.float64(space.low), np.float64(space.high)
    elif type(space).__name__ == "MultiBinary":
        low, high = np.float64(0), np.float64(1)
    else:
        low = np.float64(getattr(space, "start", 0))
        high = low + np.float64(space.nvec if hasattr(space, "nvec") else space.n) - 1
    if space.dtype.kind != "f":
        return np.asarray(low), np.asarray(high)
    sizes = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (low, high)]
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers as large as floats are
        width = np.where(
            np.isfinite(low) & np.isfinite(high), high - low, np.maximum(1.0, np.maximum(*sizes))
        )
        return low - width, high + width


@dataclass(frozen=True)
class _Saving:
    save: Callable[[Any], Any]

    def __call__(self, episode: _Episode) -> tuple[Any, Any]:
        return self.save(episode.environment), episode.last


@dataclass(frozen=True)
class _Loading:
    load: Callable[[Any, Any], Any]

    def __call__(self, episode: _Episode, snapshot: tuple[Any, Any]) -> None:
        state, episode.last = snapshot
        self.load(episode.environment, state)


def _spec(name: str, space: Any) -> ArraySpec:
    """A space as a spec: floats of any precision, or whole numbers."""
    kind = type(space).__name__
    if kind == "Discrete":
        return ArraySpec(name, (), "int64")
    if kind not in ("Box", "MultiDiscrete", "MultiBinary"):
        wrapper = "FlattenObservation" if name == "observation" else "TransformAction"
        raise ConfigurationError(
            f"Gymnasium, {name}: expected a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}. "
            f"Wrap the environment, such as in gymnasium.wrappers.{wrapper}."
        )
    if space.dtype.kind == "f":
        return ArraySpec(name, space.shape)
    dtype = space.dtype.name
    return ArraySpec(name, space.shape, dtype if dtype in DTYPES else "int64")


def _rebuild(
    kind: type[Gymnasium], environment: str | Callable[[], Any], settings: dict[str, Any]
) -> Gymnasium:
    return kind(environment, **settings)
