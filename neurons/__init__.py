"""Entry points of the two neurons: each only parses its arguments, builds and calls."""
