"""The methods of all problems by name, and those of one: its own and what it can take of these."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

from blackbox.checks import nearest
from blackbox.registered import is_there
from tasks.configuration.settings import Config, flat, to_dict
from tasks.errors import ConfigurationError, ProblemWarning
from tasks.folder.run import stage_name
from tasks.methods import cma_es, through_boxes, whole_loss
from tasks.methods.by_student import student
from tasks.methods.in_rounds import surrogate
from tasks.problem.method import Cost, Method
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained, TrainingOutcome
from tasks.training.setup import Setup


def _none(setup: Setup) -> Trained:
    return Trained(setup.network, TrainingOutcome(setup.stage))


_STUDENT = Method(
    "Autograd around a network that learns the box's values.",
    student,
    lambda problem, steps: Cost(steps, learns=True, again=True),
    needs_box=True,
    check=through_boxes.check_outputs,
    learns_answers=True,
)
_OF_WHOLE_LOSS = {
    "sparse-cge": "Finite differences in some weights, drawn anew every step.",
    "cge": "Finite differences in every weight.",
    "rge": "Finite differences along random directions.",
}
_BY_TANGENTS = partial(
    Method,
    cost=through_boxes.cost_of_tangents,
    needs_box=True,
    check=through_boxes.check_tangents,
    says=through_boxes.tangents_of_boxes,
    learns_answers=True,
    replays=True,
)
METHODS: dict[str, Method] = {
    "none": Method("The start: nothing is trained.", _none, lambda problem, steps: Cost()),
    "no-gradient": Method(
        "Unrolled through the box, the gradient cut there.",
        through_boxes.no_gradient,
        lambda problem, steps: Cost(steps + bool(problem.config.replays), again=True),  # one to see a way
        needs_box=True,
    ),
    "identity": Method(
        "As if the box's derivative were one.",
        through_boxes.identity,
        lambda problem, steps: Cost(steps, again=True),
        needs_box=True,
        check=through_boxes.check_outputs,
    ),
    "tangents": _BY_TANGENTS(
        "Autograd around a model of the box, fitted to its values.",
        through_boxes.tangents,
    ),
    "population": _BY_TANGENTS(
        "Tangents with replays at several rates, and through a model, for the rows of one training.",
        through_boxes.population,
    ),
    "surrogate": Method(
        "Through a model of the box alone, fitted in rounds to its answers.",
        surrogate,
        lambda problem, steps: Cost(steps, learns=True),
        needs_box=True,
        check=through_boxes.check_outputs,
    ),
    **({"student": _STUDENT} if is_there("zo.tangents.models.student") else {}),
    **{
        kind: Method(about, partial(whole_loss.train, kind=kind), partial(whole_loss.cost_of_loss, kind=kind))
        for kind, about in _OF_WHOLE_LOSS.items()
    },
    "row-rge": Method(
        "Autograd around the box, differences at its inputs.",
        through_boxes.row_rge,
        through_boxes.cost_of_rows,
        needs_box=True,
        check=through_boxes.check_rows,
    ),
    "first-order": Method(
        "Autograd through the problem's reference.",
        through_boxes.first_order,
        lambda problem, steps: Cost(steps + 1),  # one to compare
        needs_reference=True,
        needs_box=True,
    ),
    **cma_es.METHODS,
}

_BY_LOSS = "sparse-cge", "cge", "rge"
READ_BY = {  # settings that some of the methods above read alone: a method that is added stands here too
    "zeroth_order.mu": _BY_LOSS,
    "zeroth_order.input_mu": ("row-rge",),
    "zeroth_order.central": (*_BY_LOSS, "row-rge"),
    "zeroth_order.coordinates": ("sparse-cge",),
    "zeroth_order.directions": ("rge",),
    "zeroth_order.input_directions": ("row-rge",),
    "zeroth_order.sigma0": tuple(cma_es.METHODS),
    "zeroth_order.chunk": (*_BY_LOSS, *cma_es.METHODS),
    "replays": ("tangents", "population", "no-gradient", "first-order"),
    "rates": ("population",),
    "surrogate": ("population",),
}


def methods_of(problem: Problem | type[Problem]) -> dict[str, Method]:
    """All methods of a problem by name: its own first; not those that need a reference or box it has not."""
    more_methods = {
        name: method
        for name, method in METHODS.items()
        if name not in problem.methods
        and not (method.needs_reference and not problem.has_reference())
        and not (method.needs_box and problem.has_no_box())
    }
    return {**problem.methods, **more_methods}


def methods_named(problem: Problem, names: Sequence[str] | None = None) -> dict[str, Method]:
    """The methods of some names, in their order; no box is made for it.

    Args:
        problem: The problem, which may have methods of its own beside those of all problems.
        names: The names; those of the settings if None.

    Raises:
        ConfigurationError: A method is unknown, named twice, or needs a reference or box that the problem
            lacks.
    """
    method_names: Sequence[str] = problem.config.methods if names is None else names
    methods = {**METHODS, **problem.methods}  # what is known and not to be had is refused with its reason
    methods |= {name: method for name in method_names if (method := problem.variant(name)) is not None}
    for place, name in enumerate(method_names):
        if name not in methods:
            raise ConfigurationError(
                f"methods: expected methods of {problem.name()}, got {name!r}. {nearest(name, methods)}"
            )
        if name in method_names[:place]:
            raise ConfigurationError(
                f"methods: expected every method once, got {name!r} twice. Leave one out."
            )
        stages = {stage_name(0, earlier): earlier for earlier in method_names[:place]}
        if (twin := stages.get(stage_name(0, name))) is not None:
            raise ConfigurationError(
                f"methods: expected names that differ in letters, digits, dots or hyphens, got {twin!r} and "
                f"{name!r}, whose checkpoints would be one file. Rename one."
            )
        if methods[name].needs_box and problem.has_no_box():
            raise ConfigurationError(
                f"methods: expected methods that need no black box, since {problem.name()} has none, got "
                f"{name!r}, which puts something in a box's place. Leave it out."
            )
        if methods[name].needs_reference and not problem.has_reference():
            raise ConfigurationError(
                f"methods: expected {type(problem).__name__} to give reference(self, *inputs), the box "
                f"with a derivative, which {name} takes; it has none. Leave {name} out, or add it."
            )
    if not method_names:
        raise ConfigurationError("methods: expected at least one method, got none. Name some.")
    return {name: methods[name] for name in method_names}


def warn_of_unread(problem: Problem, methods: Mapping[str, Method]) -> None:
    """Warn of settings that no method of a run reads: who sets them expects that they do something.

    Methods of the problem's own may read any setting, and a problem those that its `Config` declares: of
    these nothing is said.

    Args:
        problem: The problem with its settings.
        methods: The methods of the run by name.
    """
    if any(METHODS.get(name) is not method for name, method in methods.items()):
        return
    settings = flat(to_dict(problem.config))
    usual = [flat(to_dict(start)) for start in (type(problem).Config(), *problem.presets.values())]
    kinds = type(problem).Config.__mro__
    own = {name for kind in kinds[: kinds.index(Config)] for name in vars(kind).get("__annotations__", ())}
    for name, readers in READ_BY.items():
        if name.partition(".")[0] in own or not methods.keys().isdisjoint(readers):
            continue
        if all(start.get(name) != settings[name] for start in usual):
            option = f"--{name.rpartition('.')[2].replace('_', '-')}"
            warnings.warn(
                f"{option} does nothing here: {', '.join(readers)} read{'s' * (len(readers) == 1)} it alone, "
                f"not {', '.join(methods)}.",
                ProblemWarning,
                stacklevel=2,
            )
