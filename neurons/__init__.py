"""Entry points of the two neurons: parse arguments, build, call."""
