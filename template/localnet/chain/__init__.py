"""A local chain in an SQLite file, and its substrate connection below the bittensor client."""
