"""Inputs whose derivative values do not show: which they are, and the dither that shows it."""
