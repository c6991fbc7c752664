"""The reproductions of DeepZero's image classification: sizes, runs, tables and plots, and baselines without a box."""
