"""Combinations of modules that are encoded exactly in what steps of users leave."""
