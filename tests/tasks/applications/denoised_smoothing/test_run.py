"""The run from the command line: what it leaves, what it refuses, and that a killed one resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
from tasks import Progress, Run
from tasks.applications.denoised_smoothing import DenoisedSmoothing
from tasks.applications.denoised_smoothing.certification import CertificateFile, algorithm, read_certificates
from tasks.applications.denoised_smoothing.config import ZerothOrder
from tasks.command import cli
from tasks.folder import checkpoint
from tasks.rows import tally
from tests.tasks.applications.denoised_smoothing import boxes, small

PRESETS = DenoisedSmoothing.presets
Config = DenoisedSmoothing.Config

# DeepZero, as published, takes steps over which these classifiers curve, or whose changes rounding hides
pytestmark = [
    pytest.mark.slow,  # their common run
    pytest.mark.filterwarnings("ignore:.*same slopes over half of mu:UserWarning"),
]

ROOT = Path(__file__).parents[4]
TIMES = ("seconds",)
METHODS = ("none", "mse", "zo-ds", "zo-ae-ds", "deepzero", "student", "fo-ds")


def certificates(path: Path) -> dict[str, list[list[str]]]:
    """All tables without the column of times."""
    found = {}
    for file in sorted((path / "certificates").rglob("*.tsv")):
        lines = [line.split("\t") for line in file.read_text().splitlines()]
        time_at = lines[0].index("time")
        found[file.name] = [line[:time_at] + line[time_at + 1 :] for line in lines]
    return found


def outcome(path: Path) -> dict:
    """All that a run found, without durations."""
    table = json.loads((path / "result.json").read_text())["table"]
    for row in table:
        del row["ledger"]["seconds"]
    return {
        "table": [{k: v for k, v in row.items() if k not in TIMES} for row in table],
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in Run.open(path).metrics()],
        "certificates": certificates(path),
        "weights": [
            (file.name, name, tensor.numpy().tobytes())
            for file in sorted((path / "checkpoints").iterdir())
            for name, tensor in checkpoint.load(file)["state"]["network"].items()
        ],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawing) -> Path:
    """A finished run of every method, with its report."""
    folder = tmp_path_factory.mktemp("smoothing")
    with pytest.MonkeyPatch.context() as patch, drawing():
        patch.chdir(ROOT)
        assert cli.main(small.words(folder, methods=METHODS)) == 0
    (path,) = (folder / "runs").iterdir()
    return path


def test_the_result_has_a_line_for_every_method_with_what_it_cost(finished):
    rows = {row["method"]: row for row in json.loads((finished / "result.json").read_text())["table"]}
    assert list(rows) == list(METHODS)
    config = Config(**small.TINY)
    for method, row in rows.items():
        assert row["metric"] == "certified accuracy at r = 0.25" and row["higher_is_better"]
        shares = [row["extra"][f"certified accuracy at r = {r}"] for r in ("0", "0.5", "0.75")]
        shares.insert(1, row["value"])
        assert shares == sorted(shares, reverse=True)
        parts = sum(count for name, count in row["extra"].items() if name.startswith("queries: "))
        assert row["queries"] == parts <= config.queries_of(method)
        assert row["extra"]["rows of test"] == config.certify_images * (config.n + config.n0)
    assert rows["none"]["queries"] == rows["mse"]["queries"] == 0 < rows["student"]["queries"]


def test_the_count_of_queries_is_what_the_box_was_sent(finished):
    table = json.loads((finished / "result.json").read_text())["table"]
    sent = (finished / "queries.count").stat().st_size
    counted = sum(row["queries"] + row["extra"]["rows of test"] for row in table)
    by_kind = {row["method"]: row["extra"] for row in table}
    shared = 6 - 1 - 1  # five methods through the box ask for the clean images together
    clean = shared * small.TINY["train_images"]
    mu = by_kind["zo-ds"]["queries: mu"]  # measured once, counted by zo-ds and deepzero
    assert by_kind["deepzero"]["queries: mu"] == mu > 0
    twin = by_kind["fo-ds"]["queries: training"]  # rows of the twin, not of the box
    assert sent == counted - clean - mu - twin


def test_the_report_holds_its_pictures_and_tables(finished):
    page = (finished / "report.html").read_text()
    for name in ("certified_accuracy", "accuracy_against_queries", "images", "curves"):
        assert (finished / f"{name}.png").exists()
    assert page.count("data:image/png;base64,") == len(list(finished.glob("*.png")))
    assert "://" not in page  # it opens offline
    assert f"on {small.TINY['certify_images']} test images" in page
    assert (finished / "table.md").exists() and (finished / "table.tex").exists()
    record = json.loads((finished / "certificates" / "seed-0" / "student.json").read_text())
    assert record["clamp"] == [0, 1]


def test_a_finished_run_is_loaded_and_its_networks_are_those_that_were_certified(finished, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = tasks.load(finished, trust=True)
    assert list(found.table["method"]) == list(METHODS)
    fields = found.fields("student")
    with torch.no_grad():
        denoised = found.network("student").eval()(torch.from_numpy(fields["noisy"])).clamp(0, 1)
    np.testing.assert_array_equal(denoised, fields["denoised"])
    assert found.problem is not None
    assert tally.evaluated(found.problem.box).ledger.rows_asked == 0  # nothing is asked for it


def test_the_exported_denoiser_is_the_one_that_validation_chose(finished):
    import onnxruntime

    table = json.loads((finished / "result.json").read_text())["table"]
    queried = [row for row in table if row["method"] in ("zo-ds", "zo-ae-ds", "deepzero", "student")]
    best = max(queried, key=lambda row: row["extra"]["validation accuracy"])
    session = onnxruntime.InferenceSession(str(finished / "denoiser.onnx"))
    fields = tasks.load(finished).fields(best["method"])
    denoised = np.asarray(session.run(None, {"image": fields["noisy"]})[0])
    np.testing.assert_allclose(denoised.clip(0, 1), fields["denoised"], atol=1e-5)


@pytest.mark.slow
def test_a_method_that_is_not_applicable_keeps_neither_report_nor_denoiser_from_the_others(tmp_path):
    """Neither where it comes last, after which there is nothing to wait for, nor where it comes first."""
    for place, methods in enumerate((("mse", "no-gradient"), ("no-gradient", "mse"))):
        made = small.problem(tmp_path, methods=methods, steps=3)
        path = tasks.run(made, runs=tmp_path / str(place)).path
        page, table = (path / "report.html").read_text(), (path / "table.md").read_text()
        assert "no-gradient is not applicable" in page
        assert "| mse |" in table and "no-gradient" not in table
        assert (path / "denoiser.onnx").exists() and (path / "certified_accuracy.png").exists()


def test_methods_of_all_problems_are_chosen_by_the_noise_of_their_seed(tmp_path):
    settings = {"steps": 1, "zeroth_order": ZerothOrder(mu=0.01), "certify_images": 1, "sigma": 1.0}
    made = small.problem(tmp_path, methods=("sparse-cge",), **settings)
    run = tasks.run(made, seeds=2, runs=tmp_path / "runs")
    for row in run.result.table:
        torch.manual_seed(row.seed)
        start = made.network()
        errors = [made.held_out_error(start, made.held_out(seed)) for seed in (0, 1)]
        assert errors[0] != errors[1]
        assert row.extra["validation accuracy of the start"] == pytest.approx(1 - errors[row.seed])


class Killed(BaseException):
    """The process is gone."""


def killed_here(words: list[str], folder: Path) -> None:
    """In this process: nothing of the run is told."""
    log = Run.log

    def dying(run, stage, step, **values):
        log(run, stage, step, **values)
        if (stage, step) == ("seed-0/student", 4):
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "log", dying)
        cli.main(words)
    torch.manual_seed(99)  # another process has another state


def killed_between_certificates(words: list[str], folder: Path) -> None:
    """After two of the images of a method."""
    append = CertificateFile.append

    def dying(file, certificate, spent):
        append(file, certificate, spent)
        if file.path.stem == "student" and certificate.idx == 1:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CertificateFile, "append", dying)
        cli.main(words)
    assert len(read_certificates(next(folder.rglob("student.tsv")))) == 2


def killed_by_the_system(words: list[str], folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.command.cli", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 240
    while not (metrics := list(folder.glob("runs/*/metrics.jsonl"))) or (
        '"stage": "seed-0/student", "step": 4' not in metrics[0].read_text()
    ):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < end, "never got to the stage"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [killed_here, killed_between_certificates, killed_by_the_system])
def test_a_killed_run_resumes_to_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch, kill):
    monkeypatch.chdir(ROOT)
    methods, folders = ("mse", "student"), (tmp_path / "whole", tmp_path / "killed")
    for folder in folders:
        folder.mkdir()
    assert cli.main(small.words(folders[0], methods=methods)) == 0
    kill(small.words(folders[1], methods=methods), folders[1])
    whole, killed = (next((folder / "runs").iterdir()) for folder in folders)
    assert not (killed / "result.json").exists()
    assert cli.main(["resume", str(killed)]) == 0
    assert outcome(killed) == outcome(whole)


def broken(folder: Path, name: str) -> dict:
    """Settings that are to be refused before the first query."""
    if name == "outside":
        with np.load(small.images(folder / "images.npz")) as file:
            np.savez(folder / "images.npz", images=file["images"] * 255, labels=file["labels"])
        return {}
    if name == "channels":
        return {"box": f"{boxes.__name__}:colour_blobs"}
    if name == "labels":
        return {"box": f"{boxes.__name__}:two_classes"}
    if name == "budget":
        return {"rows": 1000}
    if name == "queries":
        return {"queries": 100}
    return {"box_gives": "labels"}


REFUSED = [
    ("outside", ["[0, 1]", "got values from"]),
    ("channels", ["(3, 6, 6)", "(1, 6, 6)"]),
    ("labels", ["classes from 0 to 1"]),
    ("budget", ["1,000", "None was asked"]),
    ("queries", ["budget of at least", "got 100"]),
    ("answers", ["logits"]),
]


@pytest.mark.parametrize(("name", "words"), REFUSED)
def test_bad_input_is_refused_before_the_first_query(tmp_path, capsys, monkeypatch, name, words):
    monkeypatch.chdir(ROOT)
    settings = broken(tmp_path, name)
    assert cli.main(small.words(tmp_path, **settings)) in (1, 2)
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    for file in tmp_path.glob("runs/*/queries.count"):
        assert file.read_bytes() == b""


SETTINGS = [
    ({"sigma": 0.0}, ["sigma", "greater than 0"]),
    ({"sigma": float("nan")}, ["sigma"]),
    ({"n": 50, "n0": 100}, ["n0 = 100"]),
    ({"methods": ("student",)}, ["mse before student"]),
    ({"methods": ("mse", "zo-ds:fft")}, ["cge"]),
    ({"methods": ("mse@5",)}, ["asks nothing"]),
    ({"decimals": 3}, ["probabilities"]),
    ({"loss": "mse"}, ["stability"]),
    ({"depth": 1}, ["depth", "2"]),
    ({"methods": ("sparse-cge",)}, ["mu", "sparse-cge"]),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError) as caught:
        Config(**settings)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_method_is_refused_with_the_nearest_name_and_no_folder(tmp_path):
    with pytest.raises(ValueError, match="zo-ds"):
        tasks.run(small.problem(tmp_path, methods=("mse", "zo-sd")), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_paper_s_preset_runs_on_stand_ins_of_its_layout(tmp_path, monkeypatch):
    """A folder of colour pictures by class, a torch classifier of the user's: the layout, tiny."""
    from dataclasses import replace

    from PIL import Image

    generator = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "pictures" / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(14):
            pixels = generator.integers(0, 60, (9, 12, 3), dtype=np.uint8)
            pixels[3 * label : 3 * label + 3] += 150
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    tiny = {k: v for k, v in small.TINY.items() if k not in ("latent_widths", "box")}
    config = replace(
        PRESETS["paper"],
        **{**tiny, "validation_images": 6, "steps": 4, "student_steps": 4, "width": 4, "queries": 900},
        box=f"{boxes.__name__}:colour_blobs",
        images=tmp_path / "pictures",
        image_size=6,
        latent_widths=(4,),
    )  # fmt: skip
    assert config.batch_norm and config.latent_convolutions and config.query_log
    threads = torch.get_num_threads()
    found = tasks.run(DenoisedSmoothing(config), runs=tmp_path / "runs", progress=Progress())
    torch.set_num_threads(threads)
    assert list(found.table["method"]) == list(config.methods)
    assert all(row.queries <= config.queries_of(row.method) for row in found.result.table)


@pytest.mark.parametrize("dies_at", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_ledger_of_a_certification_that_was_killed_has_the_images_before(tmp_path, monkeypatch, dies_at):
    """It had those of the last process alone."""
    settings = {"methods": ("none",), "n": 300}
    append, lines = CertificateFile.append, []

    def evaluated(run):
        ledger = checkpoint.load(checkpoint.evaluation(run.path, "seed-0/none"))["ledger"]
        return {name: count for name, count in ledger.items() if name != "seconds"}

    def killed(self, certificate, counts):
        lines.append(certificate)
        if len(lines) == dies_at + 1:
            if dies_at == 2:  # the counts are on the disk, the image is not
                append(self, replace(certificate, idx=99), counts)
            raise KeyboardInterrupt
        append(self, certificate, counts)

    whole = tasks.run(small.problem(tmp_path, **settings), runs=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CertificateFile, "append", killed)
        tasks.run(small.problem(tmp_path, **settings), runs=tmp_path / "cut")
    (folder,) = (tmp_path / "cut").iterdir()
    table = next(folder.rglob("none.tsv"))
    lines_left = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines_left if not line.startswith("99")))
    again = tasks.run(small.problem(tmp_path, **settings), resume=folder)
    assert evaluated(again) == evaluated(whole)
    assert evaluated(whole)["rows_run"] == whole.result.table[0].extra["rows of test"] == 4 * (20 + 300)


@pytest.mark.parametrize(("rows", "first"), [(None, 16), (340, 1)])  # of a budget a smaller part
def test_an_image_whose_certification_was_killed_asks_only_for_the_rest(
    tmp_path, limits, monkeypatch, rows, first
):
    """100,000 queries to a slow classifier take longer than some kills come apart."""
    settings = {"methods": ("none",), "n": 300, "certify_images": 1, "rows": rows}
    limits(first_write=0.0, writes_share=0.0)
    original, blocks = algorithm.noise_block, []

    def noise_block(*given):
        blocks.append(given)
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(algorithm, "noise_block", noise_block)
    with pytest.raises(KeyboardInterrupt):
        tasks.run(small.problem(tmp_path, **settings), runs=tmp_path / "cut")
    (folder,) = (tmp_path / "cut").iterdir()
    again = tasks.run(small.problem(tmp_path, **settings), resume=folder)
    assert again.result.table[0].extra["rows of test"] == 320
    assert again.result.calls["rows"] == 320 + first  # rows, asked again: is the box the same?
    found = checkpoint.load(checkpoint.evaluation(folder, "seed-0/none"))["ledger"]
    assert found["rows_run"] == found["rows_asked"] == 320
    assert not (folder / "answers").exists()
