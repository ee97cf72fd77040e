"""Benchmarks: figures of the README, measured side by side."""
