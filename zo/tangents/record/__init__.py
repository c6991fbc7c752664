"""What a step asked the boxes and was answered: calls, a table of rows, and what tangents see of it."""
