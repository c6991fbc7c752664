"""Damage to the files of a run while nobody works on it."""

from __future__ import annotations

from pathlib import Path


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that was written last."""
    found = list((run / "checkpoints").glob("*.safetensors"))
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def truncate(path: Path, choice: float) -> str:
    """Cut a file short at a part of its length; says what was done."""
    size = path.stat().st_size
    with open(path, "rb+") as stream:
        stream.truncate(int(choice * size))
    return f"{path.name} cut from {size} to {int(choice * size)} bytes"


def flip(path: Path, choice: float) -> str:
    """Change one bit at a part of its length; says what was done."""
    content = bytearray(path.read_bytes())
    place = min(int(choice * len(content)), len(content) - 1)
    content[place] ^= 1 << int(choice * 800) % 8
    path.write_bytes(content)
    return f"a bit of byte {place} of {path.name} changed"


def tear_metrics(run: Path, choice: float) -> str:
    """Cut the last line of the metrics in two; says what was done."""
    path = run / "metrics.jsonl"
    content = path.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    place = start + int(choice * max(1, len(content) - start - 1))
    path.write_bytes(content[:place])
    return f"metrics.jsonl cut by {len(content) - place} bytes"


def spoil_journal(run: Path, choice: float) -> str:
    """Change a bit of the journal; where there is none put noise where the next one will be."""
    found = sorted((run / "journal").glob("*")) if (run / "journal").is_dir() else []
    if found and found[0].stat().st_size:
        return flip(found[0], choice)
    newest = newest_checkpoint(run)
    stage, _, step = ("seed-0__non", "", "0") if newest is None else newest.stem.partition(".step-")
    (run / "journal").mkdir(exist_ok=True)
    path = run / "journal" / f"{stage}.step-{int(step or 0) + 1:08d}"
    path.write_bytes(bytes(range(256)))
    return f"noise in journal/{path.name}"
