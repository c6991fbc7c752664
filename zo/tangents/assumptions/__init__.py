"""What an objective has to be for its record to be played back, and what is missing from its gradient."""
