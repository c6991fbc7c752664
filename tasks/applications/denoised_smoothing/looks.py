"""Colour and mark of the methods in figures."""

from __future__ import annotations

LOOKS = {
    "deepzero": ("#6152c7", "X"),
    "mse": ("#e69f00", "8"),
    "zo-ds": ("#d55e00", "<"),
    "zo-ae-ds": ("#cc79a7", "D"),
    "fo-ds": ("#0072b2", "^"),
}
