"""The blocks of docs/howto/jax.md, which the page does not run."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/howto/jax.md").read_text(encoding="utf-8")


@pytest.fixture
def blocks():
    return re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.needs("equinox", "flax")
@pytest.mark.filterwarnings("ignore")  # of JAX and its friends
def test_both_networks_learn_and_take_the_rows_that_the_page_says(blocks):
    names = {}
    for block in blocks:
        exec(block, names)
        assert names["value"] < 0.01 / 3 if "value" in names else True  # doing nothing gives 1/3
    finite, learned = names["solve"].solver, names["learning"].solver
    assert finite.box.ledger.rows_run == 60 * 48 + finite.counts.checks
    assert learned.box.ledger.rows_run == 150 * 16 and learned.counts.calls == 150
