"""A run's rows: counted, bounded, written down, and their answers kept."""
