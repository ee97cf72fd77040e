"""The KV connector, which vLLM makes on both sides: the scheduler's and the workers'."""
