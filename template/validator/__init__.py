"""The validator's loop."""
