"""Where prompts come in: vLLM's renderers, `LLM`, the command line."""
