"""Where modules are while they are not in the KV cache."""
