"""Learned tangents against first order, the identity, CGE and RGE, on several systems."""
