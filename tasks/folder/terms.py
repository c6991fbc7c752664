"""`Terms`: what a run is begun with, and goes on with: a plan in writing, or that of a script.

`config.json` has them, and `begun.json` once more, so that nobody changes what the result will claim.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from tasks.configuration import flat, to_dict
from tasks.configuration.code import NamedBySetting, named
from tasks.errors import ConfigurationError, RunFolderError
from tasks.folder import atomic, reading

CONFIG = "config.json"
BEGUN = "begun.json"  # what the run was begun with, to which `config.json` is compared
HARMLESS = {"rows"}  # settings that a resumed run may change, for no bit depends on them
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Terms:
    """The terms of a run, from its beginning on.

    Attributes:
        task: Name of the task.
        preset: Name of the preset that the settings started from.
        config: The settings, a dataclass.
        seeds: The seeds; with each of them, every method is trained once.
        data: Folder of the task's data.
        problem: The place of the problem's class: `module:Class`, or `/folder/file.py:Class`.
        script: The script that makes the run, if it has a loop of its own.
        chosen: Settings that follow from the budget, see `planning.plan`; None until the run has
            chosen.
        code: Digests of the problem's class, by its name, for the versions of the run.

    Raises:
        ConfigurationError: There are no seeds, or too many, or some are no seeds of torch.
    """

    task: str
    preset: str
    config: object
    seeds: Sequence[int]
    data: Path = Path("data")
    problem: str = ""
    script: str = ""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse seeds that are none."""
        check_seeds(self.seeds)

    @property
    def named(self) -> list[NamedBySetting]:
        """The code that settings name, such as a network of the user's own."""
        return named(self.config)

    def written(self) -> dict[str, Any]:
        """Return it as JSON values.

        Raises:
            ConfigurationError: A setting has no such form.
        """
        return {
            "task": self.task,
            "preset": self.preset,
            "config": to_dict(self.config),
            "seeds": [int(seed) for seed in self.seeds],
            "data": str(self.data.resolve()),  # a run may be resumed from another working directory
            "named": [named.text for named in self.named],
            "problem": self.problem,
            "script": self.script,
            "chosen": dict(self.chosen),
        }


def write_terms(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a run is begun with, or what of it is changed: `config.json`, and `begun.json` behind it.

    Killed between these, it has one setting or the other: `Run.lock` writes what is missing.
    """
    begun = lasting(content)
    (folder / BEGUN).unlink(missing_ok=True)
    atomic.write_json(folder / CONFIG, content)
    atomic.write_json(folder / BEGUN, begun)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words: "steps 300 (now 400)"; "" for none."""
    before, now = flat(before), flat(now)
    names = sorted({**before, **now})
    changed = [name for name in names if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in changed)


def lasting(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part that nobody may change between the first step and the last."""
    config = {name: value for name, value in content["config"].items() if name not in HARMLESS}
    return {**{name: content[name] for name in ("task", "preset", "seeds", "data")}, "config": config}


def refuse_edited(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse settings that somebody has changed since the run began: its result would claim them throughout.

    Raises:
        RunFolderError: Naming them, and what they were.
    """
    if not os.path.lexists(path / BEGUN):  # `Run.lock` writes it, before anything is done
        return
    old_record = reading.json_object(path / BEGUN, f"Delete it, if {CONFIG} is as the run began.")
    old_side, now = ({**side, "config": None} for side in (old_record, lasting(content)))
    settings = old_record.get("config")
    config = settings if isinstance(settings, dict) else {}
    parts = differences(old_side, now), differences(config, lasting(content)["config"])
    if text := ", ".join(filter(None, parts)):
        raise RunFolderError(
            f"{path / CONFIG}: expected the settings that the run was begun with, got others: {text}. Put "
            "them back, or start a new run. Where data moved, leave that setting as it was, and give "
            "`blackbox resume` --data."
        )


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are none, too many, or no seeds of torch.

    Raises:
        ConfigurationError: naming what is wrong with them.
    """
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise ConfigurationError(f"seeds: expected 1 to {MOST_SEEDS:,} of them, got {len(seeds):,}.")
    wrong = [seed for seed in seeds if not (isinstance(seed, Integral) and 0 <= seed < 2**63)]
    if wrong or len(set(seeds)) < len(seeds):
        raise ConfigurationError(
            f"seeds: expected different whole numbers from 0 to 2**63 - 1, got {list(seeds)}."
        )
