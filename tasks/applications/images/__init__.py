"""Images that both image problems train on: outlines drawn by rule, and handwritten digits."""
