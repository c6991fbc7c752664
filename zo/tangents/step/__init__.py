"""A step of `TangentGradient`: base and probes run and recorded, shared out, learned from, replayed."""
