"""The way of a run from its plan to its table, begun, resumed, or around a loop of one's own."""
