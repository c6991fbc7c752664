"""Tangents that learn from probes."""
