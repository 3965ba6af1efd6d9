"""A local chain in an SQLite file, below the bittensor client."""
