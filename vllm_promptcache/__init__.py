"""Prompt modules for vLLM: reuse the KV of text that prompts share, in any combination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

    from vllm_promptcache.llm import LLM, Module

__all__ = ["LLM", "Module", "SamplingParams"]


def __getattr__(name: str) -> Any:
    # vLLM loads the plugin in every process: nothing heavy is imported before it is asked for.
    if name in ("LLM", "Module"):
        from vllm_promptcache import llm

        return getattr(llm, name)
    if name == "SamplingParams":
        from vllm import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
