"""Command-line tools beside the neurons: each only parses its arguments, builds and calls."""
