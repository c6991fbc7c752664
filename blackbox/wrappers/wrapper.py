"""`Wrapper`: a black box around a black box, with the inner one's specs, policy and ledger."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from blackbox.errors import ConfigurationError, DefinitionError
from blackbox.failures import Outcome, Policy
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Ledger


class Wrapper(BlackBoxFunction, abstract=True):
    """Parent of all wrappers: passes everything through. A subclass overrides `run_rows`.

    Args:
        box: the black box to wrap; `failures` of the stack is the innermost box's.

    Raises:
        ConfigurationError: `box` is no `BlackBoxFunction`.
        DefinitionError: a subclass gives `evaluate` or `evaluate_rows`.

    Attributes:
        transparent: True in wrappers whose answers are the inner box's own, which a cache may then
            share between stacks with and without them.
    """

    transparent: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse a wrapper whose work would never be done."""
        super().__init_subclass__(**keywords)
        for name in ("evaluate", "evaluate_rows"):
            if name in cls.__dict__:
                raise DefinitionError(
                    f"{cls.__name__}.{name}: expected a wrapper to override run_rows, which the call goes "
                    f"through; {name} is the inner box's own. Rename it, and return an Outcome."
                )

    def __init__(self, box: BlackBoxFunction) -> None:
        """Check the inner box first, assign after."""
        if not isinstance(box, BlackBoxFunction):
            raise ConfigurationError(
                f"{type(self).__name__}, box: expected a BlackBoxFunction, got {type(box).__name__}. "
                "Make it a subclass of BlackBoxFunction first."
            )
        self.box = box
        self.inputs = box.inputs
        self.outputs = box.outputs
        self.arrays = box.arrays
        self.deterministic = box.deterministic
        self.settable, self.alike, self.remembers = box.settable, box.alike, box.remembers
        self.of_process, self.earlier = box.of_process, box.earlier

    @property
    def failures(self) -> Policy:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The policy for failed rows: one for the whole stack, kept by the innermost box."""
        return self.box.failures

    @failures.setter
    def failures(self, policy: Policy) -> None:
        self.box.failures = policy

    @property
    def isolates(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if no row is left out; like the policy, the innermost box's."""
        return self.box.isolates

    @isolates.setter
    def isolates(self, value: bool) -> None:
        self.box.isolates = value

    @property
    def ledger(self) -> Ledger:
        """The one ledger of the stack."""
        return self.box.ledger

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Hand the rows on; see `BlackBoxFunction.run_rows`."""
        return self.box.run_rows(inputs)

    def rows_to_run(self, inputs: tuple[Tensor, ...]) -> int:
        """Return how many of these rows the inner box would evaluate."""
        return self.box.rows_to_run(inputs)

    def answered(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        """Say which rows the inner box says a model can learn from."""
        return self.box.answered(outputs)

    def box_changed(self) -> None:
        """Called when somebody has changed the inner box; a wrapper that keeps a copy makes a new one."""

    # The call ends in run_rows above and never reaches this; it completes the class.
    def evaluate_rows(self, *arrays: Any) -> Any:
        """The inner box's own method."""
        return self.box.evaluate_rows(*arrays)

    def __repr__(self) -> str:
        """Nested as the stack is; subclasses with settings show them after the box."""
        return f"{type(self).__name__}({self.box!r})"
