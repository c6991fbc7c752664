"""What a user writes: `Problem`, its data and methods of its own, and how a problem is found by name."""
