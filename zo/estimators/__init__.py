"""Estimators: query plans, and the sum that makes a gradient of the answers."""
