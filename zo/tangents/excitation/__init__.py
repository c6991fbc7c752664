"""Inputs whose derivative values do not show: which they are, the dither that shows it, and their gain."""
