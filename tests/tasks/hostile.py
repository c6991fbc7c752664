"""A command in a folder with a trap for each name that it looks for there; for tests, and for the wheel.

    python hostile.py CONSOLE_SCRIPT RUN    # some commands, where RUN is a finished run of a shipped problem

No name is known beforehand. A first process of the command says which modules Python was asked for, and which
files in the current folder, whether they are there or not. Then each of them is there, and a second process
may neither execute nor read them, nor wait for them. Only the standard library is imported.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from time import monotonic

# `sitecustomize` of each Python process that a command starts: what it looks for, and what it must not do
WATCH = r"""
import os, sys
ROOT = os.environ["HOSTILE_ROOT"]
LOG = os.open(os.environ["HOSTILE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
CODE = (".py", ".pyc", ".so", ".pth", ".pyd")

def say(kind, what):
    os.write(LOG, f"{kind}\t{what!r}\n".encode())

def inside(path):
    if isinstance(path, str) and path.startswith("<"):  # of no file
        return ""
    try:
        path = os.path.abspath(os.fsdecode(path))
    except (TypeError, ValueError, OSError):
        return ""
    return os.path.relpath(path, ROOT) if path == ROOT or path.startswith(ROOT + os.sep) else ""

class Asked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None:
            say("module", name)
        for place in sys.path:
            if place == "" or (not place.startswith("__editable__") and inside(place)):
                say("PATH", place)

sys.meta_path.insert(0, Asked)

def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and inside(args[0]):
        name = inside(args[0])
        writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes and (name.endswith(CODE) or "-info" + os.sep in name):
            say("READ", name)
        say("file", name)
    elif event == "compile" and isinstance(args[1], str) and inside(args[1]):
        say("COMPILED", args[1])
    elif event == "exec" and inside(args[0].co_filename):
        say("EXECUTED", args[0].co_filename)
    elif event in ("import", "ctypes.dlopen") and isinstance(args[-1] if event != "import" else args[1], str):
        # a library's bare name, such as libdl.so.2, is looked up by the system alone
        by_name = event == "ctypes.dlopen" and os.sep not in args[0]
        if not by_name and inside(args[0] if event == "ctypes.dlopen" else args[1]):
            say("LOADED", args[:2])
    elif event in ("os.listdir", "os.scandir") and inside(args[0] or "."):
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("importlib"):
            say("LISTED", args[0])
    elif event == "subprocess.Popen":
        say("program", args[0])

sys.addaudithook(hook)

def told(function):
    def look(path, *args, **named):
        if isinstance(path, (str, bytes, os.PathLike)) and inside(path):
            say("file", inside(path))
        return function(path, *args, **named)
    return look

os.stat, os.lstat, os.access = told(os.stat), told(os.lstat), told(os.access)
"""
KINDS = ("file", "package", "bytecode", "extension")
SECONDS = 300  # for a command with traps at least; more where it is slow without them


class Folder:
    """A folder that was downloaded, in which commands are at work.

    Args:
        place: Where it is made.
        script: The command, as a list of words.
        contents: What is copied into it.
        environment: Variables beside those of this process.
    """

    def __init__(self, place: Path, script: list[str], contents: list[Path], **environment: str) -> None:
        self.script, self.contents = script, contents
        self.root, self.log, self.fired = place / "download", place / "log", place / "fired"
        watch = place / "watch"
        watch.mkdir(parents=True)
        (watch / "sitecustomize.py").write_text(WATCH)
        path = environment.pop("PYTHONPATH", "")
        self.environment = os.environ | {
            "PYTHONPATH": f"{watch}{os.pathsep}{path}" if path else str(watch),
            "HOSTILE_ROOT": str(self.root),
            "HOSTILE_LOG": str(self.log),
            "XDG_STATE_HOME": str(place / "state"),
            "HOME": str(place / "home"),
            "OMP_NUM_THREADS": "1",
        } | environment  # fmt: skip

    def anew(self) -> None:
        """Make it as it came, with no trap."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        for path in self.contents:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, self.root / path.name)
        self.log.unlink(missing_ok=True)
        self.fired.unlink(missing_ok=True)

    def told(self, *words: str, seconds: float | None = None) -> dict[str, set[str]]:
        """What a command looks for and does, by its kind, with its status and what it said."""
        try:
            done = subprocess.run(
                [*self.script, *words], cwd=self.root, env=self.environment, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=seconds,
            )  # fmt: skip
            status, said = str(done.returncode), done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status, said = "HANGS", ""
        seen: dict[str, set[str]] = {"status": {status}, "said": {said}}
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            kind, _, what = line.partition("\t")
            seen.setdefault(kind, set()).add(what.strip("'\""))
        if self.fired.exists():
            seen["FIRED"] = set(self.fired.read_text().splitlines())
        return seen

    def plant(self, modules: set[str], files: set[str], kind: str) -> None:
        """A trap for each module and each file, and a distribution with all kinds of entry points."""
        code = f"open({str(self.fired)!r}, 'a').write(__name__ + '\\n')\n"
        for name in sorted(modules - {path.name for path in self.contents}):
            if kind == "package":
                (self.root / name).mkdir(exist_ok=True)
                (self.root / name / "__init__.py").write_text(code)
            elif kind == "extension":
                (self.root / f"{name}{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
            else:
                source = self.root / f"{name}.py"
                source.write_text(code)
                if kind == "bytecode":
                    py_compile.compile(str(source), str(source) + "c", doraise=True)
                    source.unlink()
        (self.root / "trapped.py").write_text(code)
        (self.root / "trapped.pth").write_text(f"import sys; {code}")
        info = self.root / "trapped-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trapped\nVersion: 1.0\n")
        groups = {"blackbox.functions", "blackbox.tasks", "zo.evaluators", "zo.tangents"} | set(
            metadata.entry_points().groups
        )
        entries = (f"[{group}]\ntrapped = trapped:make\n" for group in sorted(groups))
        (info / "entry_points.txt").write_text("\n".join(entries))
        for name in sorted(files):  # what nobody writes, and whose reading never ends
            path = self.root / name
            if path.parent.is_dir() and not os.path.lexists(path):
                os.mkfifo(path)

    def broken(self, *words: str, kind: str = "file") -> list[str]:
        """What a command does in the second process that it must not; nothing where all is well."""
        self.anew()
        begun = monotonic()
        first = self.told(*words)
        seconds = max(SECONDS, 5 * (monotonic() - begun))  # of a machine that is busy
        modules = {name for name in first.get("module", ()) if name.isidentifier()}
        if not modules:
            return [f"nothing was watched: {first['said']}"]
        given = {path.name for path in self.contents}  # whose pipes are refused before anything is done
        files = {name for name in first.get("file", ()) if given.isdisjoint(Path(name).parts[:1])}
        self.anew()
        self.plant(modules | {"sitecustomize", "usercustomize"}, files, kind)
        second = self.told(*words, seconds=seconds)
        wrong = [f"{what}: {sorted(names)[:9]}" for what, names in second.items() if what.isupper()]
        if first["status"] != second["status"]:
            wrong += [f"status {first['status']} without traps, and with them {second['status']}"]
            wrong += second["said"]
        return wrong


def main() -> int:
    """The status: 1 where some command executes, reads or waits for a trap."""
    script, run = sys.argv[1], Path(sys.argv[2]).resolve()
    status = 0
    for words in (["list"], ["report", run.name], ["resume", run.name], ["check", "lorenz-96"]):
        with tempfile.TemporaryDirectory() as place:
            wrong = Folder(Path(place), [script], [run]).broken(*words)
        print(f"{' '.join(words)}: {'; '.join(wrong) or 'no trap fired'}")
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
