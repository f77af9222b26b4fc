"""A run's record as typed values: its files read safely, its events parsed by a grammar."""
