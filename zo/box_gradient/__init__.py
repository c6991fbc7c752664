"""Gradients of a black box's inputs from its values: autograd around it, and the queries that it makes."""
