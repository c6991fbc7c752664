"""What a step has shown of tangents, in numbers: predictions, and the check along the gradient."""
