"""Learned tangents on meshes: boxes with exact adjoints, VJPs, and training of unknowns at each node."""
