"""Names on the command line: what ships, and the black boxes and problems that other packages add.

A package adds names by entry points; its own modules are imported only when a name is used:

    [project.entry-points."blackbox.functions"]
    pump = "my_package.pump:Pump"           # a BlackBoxFunction, or a function that makes one

    [project.entry-points."blackbox.tasks"]
    tune-pump = "my_package.tune:TunePump"  # a tasks.Problem
"""

from __future__ import annotations

from collections.abc import Mapping

from blackbox.registered import added
from tasks.errors import ConfigurationError

# problems that ship: where their classes are, and what they are
PROBLEMS: dict[str, str] = {
    "wake-flow": "tasks.applications.wake_flow.problem:WakeFlow",
    "image-classification": "tasks.applications.image_classification.problem:ImageClassification",
    "denoised-smoothing": "tasks.applications.denoised_smoothing.problem:DenoisedSmoothing",
}
# data sets that `blackbox data` loads: what does so, by the data set's name and a folder
DATA_SETS = dict.fromkeys(
    ("cifar10", "cifar100"), "tasks.applications.image_classification.data.cifar:fetch_named"
)
_ABOUT = {
    "wake-flow": "A network corrects a coarse solver of the wake behind a cylinder as it runs.",
    "image-classification": "An image classifier trained from scratch from values of its loss alone.",
    "denoised-smoothing": "A certified defence of a classifier that only answers queries.",
}

# black boxes that ship, and adapters that a command line can make: class, and what it is
FUNCTIONS = {
    "wake-flow": ("simulators.wake_flow:WakeFlow", "The unsteady wake behind a cylinder, by PhiFlow."),
    "heat": ("simulators.heat:Heat", "The heat equation between cold walls; solved in closed form too."),
    "advection-diffusion-reaction": (
        "simulators.advection_diffusion_reaction:AdvectionDiffusionReaction",
        "Two species on a torus that form shocks, diffuse and react.",
    ),
    "kuramoto-sivashinsky": (
        "simulators.kuramoto_sivashinsky:KuramotoSivashinsky",
        "Chaos in space and time on a ring.",
    ),
    "implicit-diffusion": (
        "simulators.implicit_diffusion:ImplicitDiffusion",
        "Non-linear diffusion in implicit steps.",
    ),
    "lorenz-96": ("simulators.lorenz96:Lorenz96", "Lorenz's chaotic ring of 1996."),
    "coupled-map-lattice": (
        "simulators.coupled_map_lattice:CoupledMapLattice",
        "Chaotic maps on a ring, each mixed with its neighbours.",
    ),
    "onnx": ("blackbox.adapters:OnnxModel", "A model in ONNX format: onnx path=model.onnx."),
    "um-bridge": (
        "blackbox.adapters:UmBridge",
        "A model behind a server: um-bridge url=http://localhost:4242.",
    ),
}


def functions() -> dict[str, str]:
    """Name -> `module:Class` of all black boxes."""
    shipped = {name: target for name, (target, _) in FUNCTIONS.items()}
    return shipped | _usable(added("blackbox.functions", FUNCTIONS))


def problems() -> dict[str, str]:
    """Name -> `module:Class` of all problems."""
    return PROBLEMS | _usable(added("blackbox.tasks", PROBLEMS))


def check_single(target: str, group: str = "blackbox.functions") -> None:
    """Refuse a name that two packages want.

    Args:
        target: The name.
        group: "blackbox.functions" or "blackbox.tasks".

    Raises:
        ConfigurationError: naming them.
    """
    shipped = FUNCTIONS if group == "blackbox.functions" else PROBLEMS
    sources = added(group, shipped).get(target, {})
    if len(sources) > 1:
        raise ConfigurationError(
            f"{target}: Two packages want this name: {'; '.join(sources.values())}. Write the one that you "
            "mean, as module:Class."
        )


def listing() -> str:
    """All names, a line each, as `blackbox list` shows them; no package is imported for it."""
    lines = {name: line for name, (_, line) in FUNCTIONS.items()}
    lines |= {
        name: "; ".join(packages.values())
        for name, packages in added("blackbox.functions", FUNCTIONS).items()
    }
    jobs = {name: _ABOUT.get(name, target) for name, target in PROBLEMS.items()}
    jobs |= {
        name: "; ".join(packages.values()) for name, packages in added("blackbox.tasks", PROBLEMS).items()
    }
    return (
        f"Black boxes (blackbox check NAME, blackbox serve NAME):\n{_table(lines)}\n"
        f"Problems (blackbox run NAME):\n{_table(jobs)}"
    )


def _usable(names: Mapping[str, dict[str, str]]) -> dict[str, str]:
    return {name: next(iter(targets)) for name, targets in names.items() if len(targets) == 1}


def _table(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"  {name.ljust(width)}  {line}" for name, line in sorted(lines.items()))
