"""`Config`: the settings that every problem has; a problem adds its own by a subclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tasks import configuration
from tasks.configuration import Count, Natural, Positive


@dataclass(frozen=True)
class Config:
    """Settings of a run. A problem's own are added in a subclass, which is a frozen dataclass too.

    All methods take the same steps, on the same batches, from the same first weights.

    Raises:
        ConfigurationError: A setting is not what its annotation says.
    """

    methods: tuple[str, ...] = ("none", "no-gradient", "tangents")
    """What is compared, in the order of the table; `blackbox run PROBLEM --help` lists them."""
    steps: Count = 300
    """Optimiser steps of each method."""
    batch: Count = 16
    """Rows of training data in a step."""
    learning_rate: Positive = 1e-3
    """Of Adam, at the start."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Whether the learning rate falls to zero along a cosine, or stays."""
    rows: Count | None = None
    """The most rows that the run may run, validation and test included; None for no limit."""
    validate_every: Count = 25
    """Optimiser steps between validations."""
    checkpoint_every: Count = 25
    """Optimiser steps between checkpoints."""
    mu: Positive = 1e-3
    """Smoothing parameter of the weights: the finite-difference step of cge, sparse-cge, rge and hybrid."""
    input_mu: Positive = 1e-3
    """Smoothing parameter of row-rge, in the units of the box's inputs."""
    central: bool = False
    """Whether differences take both signs, with twice the queries."""
    coordinates: Count = 64
    """Weights in a step's sparse set, of sparse-cge and hybrid, drawn anew every step."""
    directions: Count = 64
    """Random directions in a step of rge and hybrid."""
    input_directions: Count = 2
    """Random directions at the box's inputs for each row, in row-rge."""
    probes: Natural = 2
    """Moved copies of the network that run beside it in a step of tangents."""
    max_rows: Positive | None = None
    """What a step of tangents may cost when trust is lost, in first-order steps; None for 3.5."""
    chunk: Count | None = None
    """Queries that are evaluated together; None for what memory allows. Another number rounds otherwise."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of torch on the CPU. Results are equal to the bit for equal numbers of threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is."""

    def __post_init__(self) -> None:
        """Check the settings; a subclass that checks more calls this first."""
        configuration.check(self)
