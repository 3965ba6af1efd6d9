"""A local chain and Hub below the official clients, for quickstart and tests."""
