"""Listeners of a run while it trains: the terminal, callbacks, MLflow, TensorBoard."""
