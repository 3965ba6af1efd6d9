"""The validator's state in one SQLite file."""
