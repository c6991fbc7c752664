"""The block of docs/howto/own_loss.md with JAX, which the page does not run, against PyTorch."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs/howto/own_loss.md").read_text(encoding="utf-8")


@pytest.mark.needs("jax")
@pytest.mark.filterwarnings("ignore")  # of JAX
def test_a_loss_in_jax_gives_the_gradient_of_the_same_loss_in_torch():
    first, *_ = re.findall(r"^```\{code-cell\}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names = {}
    exec(first, names)
    exec(PAGE[PAGE.index("def in_torch") : PAGE.index("def first_order")], names)
    exec(block, names)
    by_jax = [weights.grad.clone() for weights in names["network"].parameters()]
    names["network"].zero_grad()
    names["in_torch"](names["network"](names["numbers"]) - names["wanted"]).mean().backward()
    for ours, weights in zip(by_jax, names["network"].parameters(), strict=True):
        torch.testing.assert_close(ours, weights.grad, rtol=1e-5, atol=1e-6)
