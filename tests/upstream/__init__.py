"""vLLM's own tests of its scheduler, with ours in its place: `make test-upstream`."""
