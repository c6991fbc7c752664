"""Text to the terminal, on which no text of a folder acts, and errors without a traceback."""
