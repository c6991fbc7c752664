"""Tangents of boxes on a regular grid."""
