"""Estimators beside each other and beside other libraries: `python -m benchmarks.estimators`."""
