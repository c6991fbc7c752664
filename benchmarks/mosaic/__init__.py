"""Beside Mosaic: its solver-in-the-loop study and its recovery of an initial condition, by our methods."""
