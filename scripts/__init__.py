"""Command-line tools beside the neurons: parse arguments, build, call."""
