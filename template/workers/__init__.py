"""Processes that run evaluations, on this machine or in a Ray cluster."""
