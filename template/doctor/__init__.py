"""Checks of a machine and its settings before the work, each with what to do next."""
