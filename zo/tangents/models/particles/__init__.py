"""Tangents of particles whose neighbours change."""
