"""Tangents with a network of the user's: students."""
