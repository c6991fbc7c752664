"""Posteriors through boxes: Hamiltonian Monte Carlo by a learned force, with the box in the accept step."""
