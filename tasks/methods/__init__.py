"""The methods by name: what each trains by, what it costs, and what it refuses."""
