"""Candidates: the models that enter the default's contest, those that ship and those of other packages.

A package adds one by an entry point; the test of a model of your own is that it wins where it fits:

    [project.entry-points."zo.tangents"]
    my-model = "my_package.model:CANDIDATE"  # a zo.tangents.Candidate
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from blackbox.registered import added, registered
from zo.errors import ConfigurationError
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import ValueTangent

GROUP = "zo.tangents"
CLEARLY = 4.0  # times the mean square error: what a stencil must beat to be taken; decision 32
BETTER = 1.0  # the same of an equation, decision 145, and of what learns beside one not trusted, decision 73

# Where the candidates that ship are, in the order in which they are tried; some of them on shelves.
SHIPPED = {
    "grid": "zo.tangents.models.grid.grid:CANDIDATE",
    "stencil": "zo.tangents.models.grid.stencil:CANDIDATE",
    "equation": "zo.tangents.models.equation.equation_tangent:CANDIDATE",
    "kernel": "zo.tangents.models.kernel:CANDIDATE",
    "mesh": "zo.tangents.models.mesh.mesh:CANDIDATE",
    "graph": "zo.tangents.models.mesh.graph:CANDIDATE",
    "mlp": "zo.tangents.models.mlp:CANDIDATE",
}


@dataclass(frozen=True)
class Candidate:
    """A model that may be chosen where the user names none.

    Args:
        name: its name, under which it is registered.
        fits: a function of the box's `Specs`: None if the model can learn such a box, else the reason why
            not.
        make: a function of the box, or its `Specs`, and a seed: a new model.
        first: whether it stands before the candidates that ship; the first one is used until another one is
            better.
        reserve: whether it begins to learn only after the model in use has lost its trust.
        better: the factor by which the mean square error of the candidates before it must be larger for it
            to be taken.
        light: whether it learns from few rows, in closed form: it then takes a sixteenth of the bytes beside
            others, and is not tried a second time.
        hopeless: a function of the model: whether it is out at once, whatever the other candidates do.
        borrow: a function of the model, before it learns, and of the models beside it, by name; it may take
            over their measurements.
    """

    name: str
    fits: Callable[[Specs], str | None]
    make: Callable[[Any, int], ValueTangent]
    first: bool = False
    reserve: bool = False
    better: float = BETTER
    light: bool = False
    hopeless: Callable[[Any], bool] = lambda model: False
    borrow: Callable[[Any, Mapping[str, Any]], None] = lambda model, beside: None


def candidates(without: Collection[str] = ()) -> list[Candidate]:
    """All candidates, in the order in which they are tried.

    Args:
        without: the names of candidates to leave out.

    Raises:
        ConfigurationError: a name in `without` is unknown, two packages want one name, or a package has
            added something that is no candidate.
    """
    names = [*SHIPPED, *added(GROUP, SHIPPED)]
    unknown = sorted(set(without) - set(names))
    if unknown:
        raise ConfigurationError(
            f"AutoTangent, without: expected names of candidates, of {', '.join(names)}, got "
            f"{', '.join(unknown)}. Leave them out."
        )
    by_name = registered(GROUP, SHIPPED, without)
    for name, candidate in by_name.items():
        if not isinstance(candidate, Candidate) or candidate.name != name:
            raise ConfigurationError(
                f"AutoTangent, {name!r} of {GROUP}: expected a zo.tangents.Candidate of that name, got "
                f"{candidate!r}. Mend the package that added it, or leave it out: AutoTangent(box, "
                f"without=[{name!r}])."
            )
    return sorted(by_name.values(), key=lambda candidate: (candidate.reserve, not candidate.first))
