"""A trained network from Python: it classifies as the run's table says, and what there is not is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import tasks
from tasks import Progress, Run
from tasks.applications.image_classification import ImageClassification, load_classifier
from tasks.applications.image_classification.data import load, loading
from tasks.errors import CheckpointError, ConfigurationError, RunFolderError
from tasks.problem.problems import where_is
from tests.tasks.applications.image_classification.small import small
from tests.tasks.made_runs import begun_run

ROOT = Path(__file__).parents[4]


def finished(folder: Path, **changes) -> Run:
    problem = ImageClassification(small(**changes))
    where = where_is(ImageClassification)
    run = begun_run(folder, problem.name(), "demo", problem.config, [0], problem=where)
    tasks.run(problem, resume=run.path, progress=Progress())
    return run


def test_it_classifies_as_the_table_says(tmp_path):
    run = finished(tmp_path, methods=("none", "fo", "fo-sparse-weight", "deepzero"), learning_rate=0.2)
    test = load("digits", tmp_path, train=32, validation=20, test=20).test
    table = {
        row["method"]: row["value"] for row in json.loads((run.path / "result.json").read_text())["table"]
    }
    for method, accuracy in table.items():
        classifier = load_classifier(run.path, method)
        taken = classifier.predict(test.pixels)
        assert float((taken == test.labels).double().mean()) == accuracy
        assert torch.equal(classifier.logits(test.pixels).argmax(dim=1), taken)
        assert not classifier.network.training
        one = torch.cat([classifier.logits(image[None]) for image in test.pixels])
        torch.testing.assert_close(one, classifier.logits(test.pixels), rtol=1e-4, atol=1e-5)


def test_what_there_is_not_is_said(tmp_path):
    run = finished(tmp_path / "a", methods=("fo",))
    with pytest.raises(ConfigurationError, match=r"one of the methods fo .* got 'fa'"):
        load_classifier(run.path, "fa")
    with pytest.raises(ConfigurationError, match=r"of the seeds \(0,\), got 'fo' and 3"):
        load_classifier(run.path, "fo", seed=3)
    classifier = load_classifier(str(run.path), "fo")
    for images in (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ConfigurationError, match=r"\(rows, 1, 8, 8\) uint8"):
            classifier.predict(images)
    assert classifier.predict(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).tolist() == []
    bright = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(classifier.predict(bright.numpy()), classifier.predict(bright))  # pyright: ignore
    begun = begun_run(tmp_path / "b", "image-classification", "demo", small(methods=("fo",)), [0])
    with pytest.raises(RunFolderError, match="a method is finished"):
        load_classifier(begun.path, "fo")


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path):
    run = finished(tmp_path, methods=("fo",))
    content = json.loads((run.path / "config.json").read_text())
    content["config"]["width"] = 4
    (run.path / "config.json").write_text(json.dumps(content))
    (run.path / "begun.json").unlink()  # by which it is noticed before
    with pytest.raises(CheckpointError, match=r"width 3 \(now 4\)"):
        load_classifier(run.path, "fo")


def test_classes_and_shapes_are_known_without_the_images(tmp_path):
    for name in ("digits", "shapes"):
        data = load(name, tmp_path, train=10, validation=5, test=5)
        assert data.train.pixels.shape[1:] == loading.IMAGE_SHAPES[name]
    assert set(loading.CLASSES) == set(loading.IMAGE_SHAPES) == set(loading.NAMES)
    assert [len(loading.CLASSES[name]) for name in ("cifar10", "cifar100")] == [10, 100]


@pytest.mark.slow
def test_the_page_s_block_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "applications" / "image_classification.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    finished(tmp_path / "runs", methods=("deepzero",))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/applications/image_classification.md", "exec"), {"__name__": "page"})
    names, share = capsys.readouterr().out.strip().splitlines()
    assert len(names.split()) == 3 and 0 <= float(share) <= 1
