"""The blocks of docs/howto/jax.md, which the page does not run."""

import re
from pathlib import Path

import numpy as np
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
    assert learned.box.ledger.rows_run == 150 * 16 + 48 and learned.counts.calls == 150


@pytest.mark.needs("equinox", "flax")
@pytest.mark.filterwarnings("ignore")  # of JAX and its friends
def test_the_loss_of_rows_that_failed_has_finite_gradients(blocks):
    import jax
    import jax.numpy as jnp

    block = next(block for block in blocks if "def mean_of_rows" in block)
    x, wanted = np.arange(4.0)[:, None], np.ones((4, 1))

    def solve(x):
        return jnp.where(x == 1, jnp.nan, jnp.sin(x))

    names = {"jnp": jnp, "solve": solve}
    exec(block, names)
    alive = np.array([0, 2, 3])
    found = jax.grad(names["mean_of_rows"])(2.0, x, wanted)
    names["solve"] = jnp.sin
    np.testing.assert_allclose(
        found, jax.grad(names["mean_of_rows"])(2.0, x[alive], wanted[alive]), rtol=1e-6
    )
    assert found != 0
