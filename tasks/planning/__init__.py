"""What a run will do and cost, decided before a row is run for training."""
