"""Many replicas behind one address, on Ray Serve (extra `vllm-promptcache[ray]`).

Each replica is vLLM's own API server around an engine. Requests go to the replica that holds their
modules; schemas are the same in all replicas.
"""
