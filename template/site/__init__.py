"""Round files as words, tables and pages for people."""
