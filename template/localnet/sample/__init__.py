"""The sample competition that the quickstart runs; README.md describes its files."""
