"""The record of a step: calls of boxes, a table of their rows, and the part that tangents see."""
