"""Evaluators: ways to compute the perturbed objectives of a query plan."""
