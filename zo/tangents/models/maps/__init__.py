"""Linear maps behind the models: of all numbers, or of waves, and the grid that arrays lie on."""
