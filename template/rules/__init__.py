"""Rules of the competition: pure functions over records."""
