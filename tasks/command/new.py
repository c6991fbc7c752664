"""`blackbox new`: a small problem that works, of one of six kinds, and its test, to be made one's own."""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from string import Template

from blackbox import adapters
from blackbox_coupling import PACKAGES
from tasks.errors import ConfigurationError

TEMPLATES = Path(__file__).parent / "templates"


# what is written of each kind: a template by the end of the file's name
KINDS = {
    "correct": {".py": "correct.txt", "test": "test_correct.txt"},
    "design": {".py": "design.txt", "test": "test_design.txt"},
    "program": {".py": "program.txt", "_program.py": "solver.txt", "test": "test_program.txt"},
    "hosted": {
        ".py": "hosted.txt",
        "_program.c": "hosted_program.txt",
        ".mk": "hosted_make.txt",
        "test": "test_hosted.txt",
    },
    "classifier": {".py": "classifier.txt", "test": "test_classifier.txt"},
    "posterior": {".py": "posterior.txt", "test": "test_posterior.txt"},
}
# the box of kinds whose file writes rows for `blackbox check`
CHECKED = {"program": "tube", "classifier": "Service"}


def write(name: str, folder: Path, kind: str = "correct") -> str:
    """Write `name.py` and `test_name.py`.

    Args:
        name: "my-problem", "my_problem" and "MyProblem" give `my_problem.py` with the class `MyProblem`.
        folder: The folder; made if it is missing, in a parent that is there.
        kind: "correct", a coarse solver stepped in a loop and a network that corrects it. "design", a network
            proposes a design and the box scores it. "program", a program that reads and writes files, with
            `name_program.py` in its place. "hosted", a program that calls the network, `name_program.c`, and
            the files to compile it. "classifier", a network in front of a classifier that only answers.
            "posterior", unknowns of a box that was measured, to be drawn.

    Returns:
        Sentences that list the files, and the next commands.

    Raises:
        ConfigurationError: Python, an installed package, or an import or definition in files of that kind has
            that name, a file is there already, or there is no place for the folder; nothing is written.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower().strip("_")
    _refuse(name, words, folder, kind)
    named = {"Class": _kind(words), "module": words}
    files = {
        folder / (f"test_{words}.py" if end == "test" else f"{words}{end}"): template
        for end, template in KINDS[kind].items()
    }
    for path in files:
        if path.exists():
            raise ConfigurationError(
                f"{path}: expected no such file, got one. Take another name, or --folder."
            )
    folder.mkdir(exist_ok=True)
    for path, template in files.items():
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(named)
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
    if kind == "hosted":
        adapters.hosted.write_client(folder, ("bb_host.h", "bb_host.c"))
    problem, *_, test = paths = [quote(str(path)) for path in files]
    samples = quote(f"{folder / words}_samples.npz")
    built = {f"make -C {quote(str(folder))} -f {words}.mk": "compile the program"} if kind == "hosted" else {}
    at_work = {
        f"blackbox run {problem}": "train it by several methods, and write a report",
        f"blackbox run {problem} --help": "its methods and settings",
    }
    if kind == "posterior":
        at_work = {f"blackbox sample {problem} --rows 2000": "draw from it, and write a report"}
    steps = {
        **built,
        **at_work,
        f"python -m pytest {test}": "after every change of yours",
    }
    if kind == "hosted":
        steps[f"blackbox check {quote(f'{folder / words}.py:rod')}"] = (
            "does the program show what it goes by?"
        )
    if kind in CHECKED:
        box = quote(f"{folder / words}.py:{CHECKED[kind]}")
        steps[f"python {problem}"] = "write rows such as training will meet"
        steps[f"blackbox check {box} --samples {samples}"] = "is the box fit to be trained through?"
    if find_spec("pytest") is None:
        steps[f"python -m pytest {test}"] += " (pip install pytest)"
    width = max(map(len, steps))
    lines = [f"  {step.ljust(width)}    {about}" for step, about in steps.items()]
    return "\n".join([f"Wrote {', '.join(paths[:-1])} and {test}. Next:", *lines])


def _kind(module: str) -> str:
    """The name of the class in a module of that name."""
    return "".join(word[:1].upper() + word[1:] for word in module.split("_"))


def _refuse(name: str, module: str, folder: Path, kind: str) -> None:
    """Refuse a name that could not be imported, or would stand before another of the same name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module):
        raise ConfigurationError(
            f"{name!r}: expected a name of letters, digits and hyphens that begins with a letter. "
            "Take one such as my-problem."
        )
    class_name = _kind(module)
    for word in (module, class_name):
        if keyword.iskeyword(word):
            raise ConfigurationError(
                f"{name!r}: expected a name that Python leaves free, got {word!r}, which is a word of its "
                f"language. Take another, such as my-{name}."
            )
    parts = [template for end, template in KINDS[kind].items() if end in (".py", "test")]
    texts = [(TEMPLATES / template).read_text(encoding="utf-8") for template in parts]
    if hasattr(builtins, class_name) or class_name in re.findall(r"\w+", " ".join(texts)):
        has = "Python" if hasattr(builtins, class_name) else "a file of this kind"
        raise ConfigurationError(
            f"{name!r}: expected a name that leaves the class one of its own, got {class_name!r}, which "
            f"{has} has already. Take another, such as my-{name}."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"--folder: expected a folder, got the file {folder}. Give another.")
    if not folder.is_dir() and not folder.parent.is_dir():
        raise ConfigurationError(
            f"--folder: expected a folder, or a new one in a folder that is there, got {folder}: there is no "
            f"{folder.parent}. Correct the path, or make that folder first."
        )
    is_taken = module in PACKAGES or module in sys.stdlib_module_names
    if not is_taken and not (folder / f"{module}.py").exists():
        is_taken = find_spec(module) is not None
    if is_taken:
        raise ConfigurationError(
            f"{name!r}: expected a name that no module has, got that of {module!r}. "
            f"Take another, such as my-{name}."
        )
