"""The reproductions of DeepZero's image classification, and baselines that need no black box."""
