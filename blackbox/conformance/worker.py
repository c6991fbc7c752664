"""The other end of `processes.in_process`: unpickles a box, waits for the word, evaluates batches."""

from __future__ import annotations

import pickle
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from blackbox.conformance.probe import keeping


def main(folder: Path, number: str) -> None:
    """Answer the batches in `folder`, one file each; an error that leaves a call is a text file."""
    # Written by the parent a moment ago in a folder that only this user can write to.
    box = pickle.loads((folder / "box").read_bytes())
    with np.load(folder / "batches.npz", allow_pickle=False) as content:
        batches = [
            tuple(content[f"{place}-{name}"] for name in range(len(box.inputs)))
            for place in range(int(content["count"]))
        ]
    (folder / f"ready-{number}").touch()
    while not (folder / "go").exists():
        if not folder.exists():
            return
        time.sleep(0.002)
    warnings.simplefilter("ignore")
    with keeping(box), np.errstate(all="ignore"):
        for place, batch in enumerate(batches):
            unfinished = folder / f"unfinished-{number}"
            try:
                given = box(*batch)
            except Exception as error:
                unfinished.write_text(f"{type(error).__name__}: {error}")
                unfinished.rename(folder / f"error-{number}-{place}")
                continue
            with unfinished.open("wb") as file:
                np.savez(file, *(given if isinstance(given, tuple) else (given,)))
            unfinished.rename(folder / f"answer-{number}-{place}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
