"""Tangents of boxes on meshes and graphs."""
