"""Colour and mark of the methods in figures."""

from __future__ import annotations

LOOKS = {
    "deepzero": ("#6152c7", "X"),
    "fo": ("#0072b2", "^"),
    "fo-sparse-weight": ("#56b4e9", "<"),
    "fo-sparse-gradient": ("#009e73", ">"),
    "sparse-rge": ("#b684cb", "s"),
}
