"""How a sequence reads modules: what is read, what is computed, how both lie in its blocks."""
