"""Rules of the competition: pure functions over records, without files, network or clock."""
