"""What a step of `TangentGradient` is made of: settings, evaluation, stand-ins, replays, outcome."""
