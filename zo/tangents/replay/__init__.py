"""Further steps on what was recorded: which windows are kept, how many replays follow, and the memory."""
