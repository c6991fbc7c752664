"""Warnings stand at the user's line, however deep they are given, and once for each name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.autograd import Function

from blackbox.notices import Notice, Notices, warn


def deep(depth: int, namespace: dict) -> None:
    """A call of `warn` from so many functions deep inside of a package."""
    exec("def go(depth):\n    warn('words', UserWarning) if not depth else go(depth - 1)\n", namespace)
    namespace["go"](depth)  # the user's line


@pytest.mark.parametrize("depth", [0, 3, 17])
@pytest.mark.parametrize("package", ["zo.tangents.trust", "blackbox", "tasks.training.training_loop"])
def test_a_warning_stands_at_the_line_that_called_the_project(depth, package):
    with pytest.warns(UserWarning, match="words") as caught:
        deep(depth, {"warn": warn, "__name__": package})
    (warning,) = caught
    assert warning.filename == __file__
    with open(__file__) as lines:
        assert "# the user's line" in lines.readlines()[warning.lineno - 1]


def test_a_package_of_a_similar_name_is_the_users():
    with pytest.warns(UserWarning) as caught:
        deep(2, {"warn": warn, "__name__": "zoology.animals"})
    assert caught[0].filename == "<string>"


def test_where_autograd_calls_back_the_line_is_that_of_backward():
    class Warns(Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            inside = {"warn": warn, "__name__": "zo.tangents.playback.playback"}
            exec("warn('from behind', UserWarning)", inside)
            return gradient

    with pytest.warns(UserWarning, match="from behind") as caught:
        Warns.apply(torch.ones(1, requires_grad=True)).backward()
    assert caught[0].filename == __file__


def test_each_name_is_said_once_and_what_is_settled_never():
    notices = Notices()
    notices.settle("noise")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            notices.say(
                Notice("zero", "no weight changes the loss", UserWarning),
                None,
                Notice("noise", "was said before", UserWarning),
                Notice("lost", "rows are left out", RuntimeWarning),
            )
            notices.settle("lost")
            notices.say(Notice("slopes", "said in the first round alone", UserWarning))
    assert [str(warning.message) for warning in caught] == [
        "no weight changes the loss",
        "rows are left out",
        "said in the first round alone",
    ]
    assert [warning.category for warning in caught] == [UserWarning, RuntimeWarning, UserWarning]
    assert notices.said == {"noise", "zero", "lost", "slopes"}


def test_an_error_that_a_filter_makes_of_it_is_raised_and_counts_as_said():
    notices = Notices()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="once"):
            notices.say(Notice("name", "once", UserWarning))
        notices.say(Notice("name", "once", UserWarning))
