"""An embedded chain and dataset hub below the official clients, for the quickstart and the tests."""
