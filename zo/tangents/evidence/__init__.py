"""The evidence of a step about tangents, in numbers: predictions, and the check along the gradient."""
