"""A node of the local chain: Substrate JSON-RPC over a WebSocket."""
