"""Download and upload datasets through the huggingface_hub client."""
