"""Read, judge and print what a validator has recorded."""
