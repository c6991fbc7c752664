"""What a user runs: tasks with presets, runs that resume, reports, and the command line."""
