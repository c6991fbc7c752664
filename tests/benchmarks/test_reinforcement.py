"""Environments that are reset and stepped: where trainings are looked at, and the page that shows one."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import reinforcement

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "reinforcement_learning.md"
CART = reinforcement.CASES["cart"]


def test_a_training_is_looked_at_where_it_has_taken_as_many_steps_as_each_mark(monkeypatch):
    monkeypatch.setattr(reinforcement, "mean_return", lambda case, act: act)
    training = iter([(100, -9.0), (200, -5.0), (500, -2.5), (600, -4.0)])
    run = reinforcement.measured(CART, training, (150, 300, 400, 600))  # type: ignore[arg-type]
    assert [(point["steps"], point["return"]) for point in run["points"]] == [
        (200, -5.0),
        (500, -2.5),
        (500, -2.5),
        (600, -4.0),
    ]
    assert reinforcement.reached(run) == 500
    assert reinforcement.reached({"points": run["points"][:1]}) == math.inf


@pytest.mark.needs("gymnasium")
def test_the_cart_goes_where_its_force_takes_it_and_pays_for_the_way():
    nothing = reinforcement.mean_return(CART, None)
    towards = reinforcement.mean_return(CART, lambda seen: (seen[:, :1] - 0.6 * seen[:, 1:]).clamp(-1, 1))
    away = reinforcement.mean_return(CART, lambda seen: -seen[:, :1].clamp(-1, 1))
    assert away < nothing < 2 * towards < towards < 0


@pytest.mark.slow
@pytest.mark.needs("gymnasium")
def test_the_page_s_cart_learns():
    (code,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(map(bool, code.splitlines())) <= 25
    scope = {"Cart": reinforcement.cart_class()}
    torch.manual_seed(0)
    exec(compile(code, PAGE.name, "exec"), scope)
    assert reinforcement.mean_return(CART, scope["policy"]) > -4  # from -12.6 by doing nothing
