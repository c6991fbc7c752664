"""What a run will do and cost, decided before it trains."""
