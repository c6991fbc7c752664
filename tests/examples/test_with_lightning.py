"""The example for Lightning learns, and goes on from a checkpoint to the bits of a run without a stop."""

import importlib.util
from pathlib import Path

import pytest
import torch

PLACE = Path(__file__).parents[2] / "examples" / "with_lightning.py"


@pytest.mark.slow
@pytest.mark.needs("lightning")
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    spec = importlib.util.spec_from_file_location("with_lightning", PLACE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    whole = example.train(4, tmp_path / "whole")
    example.train(2, tmp_path / "parts")
    parts = example.train(4, tmp_path / "parts", resume=tmp_path / "parts" / "last.ckpt")
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, parts.network.state_dict()[name]), name
    assert whole.trainer.callback_metrics["validation"] < 0.1  # doing nothing gives 1/3
    assert parts.gradient.next_queries() == whole.gradient.next_queries()
