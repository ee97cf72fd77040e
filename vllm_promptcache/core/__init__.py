"""The scheduler's side: who waits for which module, and which blocks a request maps."""
