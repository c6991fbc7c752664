"""The page on the command line: what each command says of itself with --help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

from _extensions.links import DOCS, ROOT, code

WIDTH = 84  # columns; what fits beside the list of pages in a window of 1,280 pixels
NARROW = 46  # what fits on a phone of 390 pixels
SETTINGS = (
    "Settings depend on the problem: `blackbox run PROBLEM --help` lists them, as below for "
    "[the problems that ship](#blackbox-run-wake-flow). Those of `steps`, `batch`, `learning_rate`, `rows`, "
    "`seeds` and `methods` are common to all."
)
PROBLEMS = ("wake-flow", "denoised-smoothing", "image-classification")


def page() -> str:
    """The page; kept in `_build` until the code changes, since each command is a process of its own."""
    kept = DOCS / "_build" / "command_line" / f"{code()}-{WIDTH}-{NARROW}.md"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(_made(), encoding="utf-8")
    return kept.read_text(encoding="utf-8")


def _made() -> str:
    main = said()
    commands = re.findall(r"[{,]([a-z]+)(?=[,}])", main.split("\n\n")[0])
    calls = [(name,) for name in commands] + [("run", problem) for problem in PROBLEMS]
    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip(calls, pool.map(lambda words: _block(*words), calls), strict=True))
    parts = [
        "# Command line",
        "What `blackbox` and its commands say with `--help`; this page is made from it at each build.",
        _block(),
    ]
    for words, text in texts.items():
        shown = " ".join(("blackbox", *words))
        parts += [f"## `{shown}`", *([SETTINGS] if words == ("run",) else []), text]
    return "\n\n".join(parts) + "\n"


def said(*words: str, width: int = WIDTH) -> str:
    """The help of a command, in lines of a width.

    Raises:
        RuntimeError: It ended with an error.
        subprocess.TimeoutExpired: It took more than three minutes.
    """
    quiet = {"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "blackbox_coupling.py"), *words, "--help"],
        env=os.environ | quiet,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    if done.returncode != 0:
        raise RuntimeError(f"blackbox {' '.join(words)} --help ended with {done.returncode}: {done.stderr}")
    return _wrapped(done.stdout.replace(str(ROOT), ".").rstrip(), width)


def _wrapped(text: str, width: int) -> str:
    """Sentences outside of the boxes in lines of the same width."""
    lines = (
        textwrap.wrap(line, width, subsequent_indent=" " * (len(line) - len(line.lstrip())))
        if len(line) > width and line.lstrip()[0].isalpha()
        else [line]
        for line in text.splitlines()
    )
    return "\n".join(each for several in lines for each in several)


def _block(*words: str) -> str:
    """The help of a command, twice: of the two the style sheet shows the one that the window has room for."""
    widths = {"help-broad": WIDTH, "help-narrow": NARROW}
    texts = {name: said(*words, width=width) for name, width in widths.items()}
    return "\n\n".join(
        f"````{{container}} {name}\n```text\n{text}\n```\n````" for name, text in texts.items()
    )
