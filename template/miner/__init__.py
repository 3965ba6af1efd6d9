"""Check, publish and seal a dataset."""
