"""Logs, metrics and wandb."""
