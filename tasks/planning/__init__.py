"""The plan of a run and its cost, decided before it trains."""
