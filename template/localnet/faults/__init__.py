"""Faults of a node, injected by the local chain's administrator."""
