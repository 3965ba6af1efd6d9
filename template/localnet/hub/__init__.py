"""A local Hugging Face Hub: its HTTP API over a folder."""
