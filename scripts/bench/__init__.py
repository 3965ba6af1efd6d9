"""Benchmarks of an evaluation beside the Hugging Face Trainer."""
