"""A subnet where small chat datasets compete: the shared package of validator, miner and scripts.

Importing it loads nothing heavy; see the module docstrings for the layers.
"""

__version__ = "0.6.0"
