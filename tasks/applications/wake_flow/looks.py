"""Colour and mark of the methods in figures: a larger network has its method's mark, in a lighter colour."""

from __future__ import annotations

LOOKS = {
    "SRC": ("#606060", "o"),
    "NON": ("#e69f00", "s"),
    "PRE": ("#cc79a7", "D"),
    "PRE-SR": ("#a24b8a", "d"),
    "FO-SOL": ("#0072b2", "^"),
    "ZO-SOL": ("#d55e00", "v"),
    "chain": ("#915d2e", "X"),
    "TAN-SOL": ("#009e73", "P"),
    "TAN-SOL small": ("#75b86d", "p"),
    "NON large": ("#f0c75e", "s"),
    "PRE large": ("#e3b1cc", "D"),
    "PRE-SR large": ("#b684cb", "d"),
    "FO-SOL large": ("#56b4e9", "^"),
    "ZO-SOL large": ("#f7ab92", "v"),
    "chain large": ("#bd8a51", "X"),
    "identity large": ("#849ef7", "*"),
}
