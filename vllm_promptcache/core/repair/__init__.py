"""Tokens of modules that are computed again because a prompt attends to them."""
