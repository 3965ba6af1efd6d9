"""The validator's loop and its status."""
