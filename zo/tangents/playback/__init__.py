"""The objective once more, its boxes answered from a record: at the same weights, or at others."""
