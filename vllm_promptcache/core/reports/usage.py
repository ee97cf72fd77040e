"""What a request is told about the modules it read."""

from __future__ import annotations

from typing import Any

from vllm_promptcache.core.request import ModularRequest


def num_encoded_tokens(modular: ModularRequest) -> int:
    """Tokens it reads of modules that were encoded for it."""
    encoded = modular.account.encoded_keys
    return sum(span.num_tokens for span, key in modular.span_keys() if key in encoded)


def uncount_encoded(modular: ModularRequest) -> None:
    """Takes tokens that were encoded on behalf of a request out of its cached tokens.

    Mutates the `prefill_stats` of vLLM's request, from which `usage` is made.
    """
    stats, num_encoded = modular.request.prefill_stats, num_encoded_tokens(modular)
    if stats is None or num_encoded == 0 or modular.request.num_preemptions:
        return
    num_external = min(stats.num_external_cached_tokens, stats.num_cached_tokens - num_encoded)
    stats.set(
        num_prompt_tokens=stats.num_prompt_tokens,
        num_local_cached_tokens=stats.num_cached_tokens - num_encoded - num_external,
        num_external_cached_tokens=num_external,
    )


def module_usage(modular: ModularRequest) -> list[dict[str, Any]] | None:
    """The modules of a request whose client asked for them, in the order of its plan.

    Path, tokens that it reads (that it computes, of a cold one), and `hit`, `encoded` or `cold`.
    """
    account, paths = modular.account, modular.account.paths
    if paths is None:
        return None
    numbers = range(len(paths)) if account.span_numbers is None else account.span_numbers
    told = {number: (num_tokens, "cold") for number, num_tokens in account.cold.items()}
    for number, (span, key) in zip(numbers, modular.span_keys(), strict=True):
        told[number] = span.num_tokens, "encoded" if key in account.encoded_keys else "hit"
    return [
        {"path": paths[number], "tokens": num_tokens, "status": status}
        for number, (num_tokens, status) in sorted(told.items())
    ]
