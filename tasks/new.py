"""`blackbox new`: a small problem that works, and its test, to be changed into one's own."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from string import Template

from tasks.errors import ConfigurationError
from tasks.tracebacks import PACKAGES

TEMPLATES = Path(__file__).parent / "templates"


def write(name: str, folder: Path) -> str:
    """Write `name.py` and `test_name.py`.

    Args:
        name: "my-problem", "my_problem" and "MyProblem" give `my_problem.py` with the class `MyProblem`.
        folder: Where; made if missing.

    Returns:
        What was written, and what to type next.

    Raises:
        ConfigurationError: Python, or an installed package, has that name, or a file is there already;
            nothing is written.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower().strip("_")
    kind = "".join(word[:1].upper() + word[1:] for word in words.split("_"))
    _refuse(name, words, folder)
    named = {"Class": kind, "module": words}
    files = {folder / f"{words}.py": "problem.txt", folder / f"test_{words}.py": "test.txt"}
    for path in files:
        if path.exists():
            raise ConfigurationError(
                f"{path}: expected no such file, got one. Take another name, or --folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in files.items():
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(named)
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
    problem, test = (quote(str(path)) for path in files)
    return (
        f"Wrote {problem} and {test}. Next:\n"
        f"  blackbox run {problem}             train it by several methods, and write a report\n"
        f"  blackbox run {problem} --help      its methods and settings\n"
        f"  python -m pytest {test}    after every change of yours"
    )


def _refuse(name: str, module: str, folder: Path) -> None:
    """Refuse a name that could not be imported, or would stand before another of the same name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ConfigurationError(
            f"{name!r}: expected a name of letters, digits and hyphens that begins with a letter. "
            "Take one such as my-problem."
        )
    taken = module in PACKAGES or module in sys.stdlib_module_names or module == "solver"
    if not taken and not (folder / f"{module}.py").exists():
        taken = find_spec(module) is not None
    if taken:
        raise ConfigurationError(
            f"{name!r}: expected a name that no module has, got that of {module!r}. "
            f"Take another, such as my-{name}."
        )
