"""Read and write the chain through the bittensor client."""
