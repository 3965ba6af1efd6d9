"""Receipts and round files: write, read, verify and replay them."""
