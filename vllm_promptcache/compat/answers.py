"""Signatures that differ between the versions of vLLM that we run with."""

# By name: what the later version has less and more, and how our code takes both.
ANSWERS: dict[str, tuple[tuple[str, ...], str]] = {
    "vllm.v1.core.sched.scheduler.Scheduler._get_local_prefix_cache_hit": (
        ("+max_cache_hit_length: int | None = None",),
        "our override passes on what comes behind the request",
    ),
    "vllm.v1.engine.core.get_request_block_hasher": (
        ("+num_hash_lookahead_tokens: int = 0",),
        "our wrapper passes on all arguments; the new one counts drafted tokens, which are refused",
    ),
}
