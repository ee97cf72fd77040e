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

    Path; tokens that it reads, or of a cold module computes; `hit`, `encoded` or `cold`; and what
    these tokens are: `exact`, `repaired`, or what they were encoded behind.
    """
    account, modules = modular.account, modular.account.modules
    if modules is None:
        return None
    numbers = range(len(modules)) if account.span_numbers is None else account.span_numbers
    read = dict(zip(numbers, modular.span_keys(), strict=True))
    read_as = {n: "repaired" if n in account.repaired else modules[n][1] for n in read}
    # What is computed has seen all that is before it, be that exact or not.
    computed_as = "exact" if {*read_as.values()} <= {"exact"} else "repaired"
    told = {n: (num_tokens, "cold", computed_as) for n, num_tokens in account.cold.items()}
    for number, (span, key) in read.items():
        status = "encoded" if key in account.encoded_keys else "hit"
        told[number] = span.num_tokens, status, read_as[number]
    return [
        {"path": modules[n][0], "tokens": num_tokens, "status": status, "read_as": what}
        for n, (num_tokens, status, what) in sorted(told.items())
    ]
