"""Programs that call the network."""
