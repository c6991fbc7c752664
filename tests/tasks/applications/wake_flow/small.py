"""The wake-flow problem at the smallest size that still has every part."""

from __future__ import annotations

from dataclasses import replace

from tasks.applications.wake_flow import WakeFlow
from tasks.configuration import flat, to_dict

Config = WakeFlow.Config

SMALL = Config(
    methods=(
        *("SRC", "NON large", "TAN-SOL@24", "FO-SOL large@24", "FO-SOL large@48"),
        *("NON", "FO-SOL", "ZO-SOL"),
    ),
    tuned=(("TAN-SOL@24", 1, 0.002),),
    replays=1,
    width=8,
    reference_width=16,
    warm_up=4,
    frames=14,
    train_reynolds=(120.0, 240.0),
    validation_reynolds=(200.0,),
    test_reynolds=(170.0, 340.0),
    channels=(2,),
    large_channels=(3, 2),
    steps=6,
    large_steps=6,
    unroll=2,
    batch=2,
    non_steps=6,
    large_non_steps=6,
    non_batch=5,
    prefit=8,
    horizon=8,
    test_starts=2,
    validation_starts=1,
    validate_every=3,
    zeroth_order=replace(Config.zeroth_order, coordinates=5),
)


def words(*more: str, methods: tuple[str, ...] = SMALL.methods, start: str = SMALL.start) -> list[str]:
    """The command line of a run with these settings."""
    line = ["run", "wake-flow", "--preset", "demo"]
    usual = flat(to_dict(WakeFlow.presets["demo"]))
    for name, value in flat(to_dict(replace(SMALL, methods=methods, start=start))).items():
        option = f"--{name.rpartition('.')[2].replace('_', '-')}"
        if isinstance(value, bool):
            line += [] if value == usual[name] else [option if value else f"--no-{option[2:]}"]
        elif value is not None:
            line += [option, *words_of(value)]
    return [*line, *more]


def words_of(value: object) -> list[str]:
    """A setting as words: lists, and lists in them, end to end."""
    return [word for each in value for word in words_of(each)] if isinstance(value, list) else [str(value)]
