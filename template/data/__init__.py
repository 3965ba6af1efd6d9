"""Rows, encoding and evaluation set of a data.jsonl. Standard library only."""
