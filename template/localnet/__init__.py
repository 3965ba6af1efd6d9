"""A local chain and Hub below the official clients, for the quickstart and the tests."""
