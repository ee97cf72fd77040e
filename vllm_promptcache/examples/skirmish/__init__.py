"""A small turn-based game: source code that the prompts of the schema `code` import."""
