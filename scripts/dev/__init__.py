"""Tools for the maintainers of the lock file."""
