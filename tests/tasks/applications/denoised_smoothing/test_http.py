"""A whole run behind HTTP, certificates too: the server rounds, drops, fails, is late, and kills."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import zo
from tasks.applications.denoised_smoothing import data
from tasks.command import cli
from tests.blackbox.adapters.um_bridge.servers import Handler, OddServer
from tests.tasks.applications.denoised_smoothing import small

ROOT = Path(__file__).parents[4]
PIXELS = small.SIDE**2
TRAINING, PLANNED = 150, 150 + 2 * 2 * 50  # student's, and with the certificates of two methods


class Service(OddServer):
    """Probabilities of `boxes.Blobs` rounded to three decimals; every 9th request comes to grief."""

    sizes = json.dumps({"outputSizes": [small.CLASSES]}).encode()
    down, trouble, flaky = False, True, False
    kill_at, victim = 0, 0
    billed: int
    answered: Counter[tuple[float, ...]]

    def answer(self, handler: Handler) -> None:
        self.billed += 1
        if self.billed == self.kill_at:
            os.kill(self.victim, signal.SIGKILL)
            handler.close_connection = True
        elif self.down or (self.flaky and self.billed % 2) or (self.trouble and self.billed % 18 == 4):
            handler.send(b'{"error": {"type": "Busy", "message": "try later"}}', 500)
        elif self.trouble and self.billed % 18 == 13:
            handler.close_connection = True  # seen, and dropped
        elif self.trouble and self.billed == 60:
            handler.wait_in_vain()
        else:
            image = np.array(handler.given).reshape(3, 2, small.SIDE)
            odds = np.exp(12 * image.mean(axis=(1, 2)))
            self.answered[tuple(handler.given)] += 1
            handler.send(json.dumps({"output": [np.round(odds / odds.sum(), 3).tolist()]}).encode())


class Asked(Handler):
    def do_POST(self) -> None:
        if self.path != "/InputSizes":
            return super().do_POST()
        self.rfile.read(int(self.headers["Content-Length"]))
        return self.send(json.dumps({"inputSizes": [PIXELS]}).encode())


@contextmanager
def serving():
    server = Service(("127.0.0.1", 0), Asked)
    server.evaluate, server.asked, server.billed, server.answered = server.answer, [], 0, Counter()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def words(server: Service, folder: Path, **settings: object) -> list[str]:
    arguments = f"url={server.url}", "timeout=2", "failures=keep"
    return small.words(
        folder, box="um-bridge", box_arguments=arguments, box_gives="probabilities",
        answers="probabilities", decimals=3, methods=("mse", "student"), queries=TRAINING, attempts=8,
        query_log=True, certify_images=2, n=40, n0=10, student_steps=6, validations=1, **settings,
    )  # fmt: skip


def run_in(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def sent(path: Path) -> int:
    return (path / "queries.count").stat().st_size


def certificates(path: Path) -> list[list[str]]:
    lines = [
        line.split("\t") for file in sorted(path.rglob("*.tsv")) for line in file.read_text().splitlines()
    ]
    return [line[:5] + line[6:] for line in lines]  # without the time


@pytest.mark.slow
def test_a_run_through_a_bad_connection_is_that_through_a_good_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = []
    for trouble in (False, True):
        folder = tmp_path / str(trouble)
        folder.mkdir()
        with serving() as server:
            server.trouble = trouble
            assert cli.main(words(server, folder, rows=2 * PLANNED)) == 0
            path = run_in(folder)
            assert sent(path) == server.billed <= 2 * PLANNED
            assert max(server.answered.values()) == 1  # nothing is paid for twice
            assert (server.billed > server.answered.total()) is trouble
        rows = json.loads((path / "result.json").read_text())["table"]
        # what was sent differs: repetitions are no queries of a method
        shown = [{k: v for k, v in row.items() if k not in ("seconds", "rows", "ledger")} for row in rows]
        for row in shown:
            row["extra"].pop("rows of validation")
        found.append((shown, certificates(path)))
        assert rows[1]["queries"] <= TRAINING
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_server_never_sees_more_than_the_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with serving() as server:
        server.flaky = True  # every second request is in vain, and repetitions do not fit
        assert cli.main(words(server, tmp_path, rows=PLANNED)) == 1
        assert cli.main(["resume", str(run_in(tmp_path))]) == 1
        assert "budget" in capsys.readouterr().err.lower()
        assert PLANNED - 1 <= server.billed <= PLANNED
        assert sent(run_in(tmp_path)) == server.billed


@pytest.mark.slow
@pytest.mark.parametrize("request_number", [60, 200])  # in training, and in the certificates
def test_killed_and_resumed_no_query_is_paid_for_twice(tmp_path, monkeypatch, request_number):
    monkeypatch.chdir(ROOT)
    with serving() as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.command.cli", *words(server, tmp_path, rows=2 * PLANNED)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        server.victim, server.kill_at = process.pid, request_number
        assert process.wait(240) == -signal.SIGKILL
        assert server.billed == request_number == sent(run_in(tmp_path))
        assert cli.main(["resume", str(run_in(tmp_path))]) == 0
        assert max(server.answered.values()) == 1
        assert sent(run_in(tmp_path)) == server.billed <= 2 * PLANNED


@pytest.mark.slow
def test_a_server_that_is_down_is_found_out_at_once(tmp_path, monkeypatch, capsys):
    """Not after the budget went into training on nothing; and what it did not say is not kept."""
    monkeypatch.chdir(ROOT)
    with serving() as server:
        server.down = True
        assert cli.main(words(server, tmp_path)) == 1
        assert "none to 40 of 40" in capsys.readouterr().err
        assert server.billed == 8 * small.TINY["train_images"]
        server.down = False
        assert cli.main(["resume", str(run_in(tmp_path))]) == 0


def test_labels_beyond_those_of_the_images_need_their_number(tmp_path):
    from tasks.applications.denoised_smoothing.classifiers import Scored
    from tasks.applications.denoised_smoothing.classifiers.stack import make_box

    chosen = small.config(
        tmp_path, box="tests.tasks.applications.denoised_smoothing.boxes:TenLabels", box_gives="labels",
        answers="labels", classes=10,
    )  # fmt: skip
    box = make_box(chosen, data.load(chosen), tmp_path)
    assert isinstance(box.scores, zo.execution.SharedRows) and isinstance(box.scores.box, Scored)
    assert box.classes == 10
    assert box.scores(small.rows(3).float()).shape == (3, 10)
