"""Posteriors of expensive boxes, and models that stand in for the boxes' derivatives."""
