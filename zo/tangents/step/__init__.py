"""The parts of a step of `TangentGradient`: settings, evaluation, stand-ins, replays, outcome."""
