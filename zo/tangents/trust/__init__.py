"""Whether a tangent is to be believed, and what is done when it is not."""
