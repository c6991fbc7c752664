"""The problems that ship: each is what a user would write, beside the engine that runs it."""
