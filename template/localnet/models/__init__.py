"""Models for the quickstart and the tests: a tiny random one and a small real one."""
