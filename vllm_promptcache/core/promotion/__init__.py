"""Combinations of modules that are encoded exactly while the engine is idle."""
