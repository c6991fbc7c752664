"""Error over rows: first order, and learned tangents with anchored replay, at a share of its rows."""
