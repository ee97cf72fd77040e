"""How many KV cache blocks a sequence takes at most on its way into the cache.

Its modules become resident one after the other, and those that are wait for the rest. To encode one
takes its contexts as well, and blocks for its placeholders, for a while. Those that take the most
beyond what they keep come first: so the peak is lowest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.codec import Plan
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan
from vllm_promptcache.sequence.spec import ModuleSpec


@dataclass(frozen=True, slots=True)
class Way:
    """How a module becomes resident.

    Attributes:
        num_blocks: Blocks it takes once it is.
        encode: What its encode reads and computes; None if it needs none.
        num_encode_blocks: Blocks of the encode beside those of the modules that it reads.
    """

    num_blocks: int
    encode: SequencePlan | None = None
    num_encode_blocks: int = 0

    @classmethod
    def of(cls, spec: ModuleSpec, block_size: int) -> Way:
        """The way of a module that has to be encoded."""
        table = BlockTable.of(spec.sequence, block_size)
        num_own = table.num_own_blocks(spec.sequence.num_tokens)
        return cls(-(-spec.num_kept_tokens // block_size), spec.sequence, num_own)


WayOf = Callable[[bytes], Way]


def peak(spans: Iterable[ModuleSpan], num_own: int, way_of: WayOf) -> int:
    """Most blocks that are taken at one time until a sequence has its modules and its own blocks.

    Args:
        spans: What it reads, in the order in which it becomes resident.
        num_own: Blocks it takes at last, beside those of all these modules.
        way_of: Says by a module's key how that becomes resident.
    """
    return _peak(spans, num_own, way_of, {})


def _peak(
    spans: Iterable[ModuleSpan], num_own: int, way_of: WayOf, before: Mapping[bytes, int]
) -> int:
    most, taken = 0, dict(before)
    for span in spans:
        if span.key not in taken:
            way = way_of(span.key)
            if way.encode is not None:
                num_encode = way.num_encode_blocks
                most = max(most, _peak(way.encode.spans, num_encode, way_of, taken))
            taken[span.key] = way.num_blocks
    return max(most, sum(taken.values()) + num_own)


def at_once(spans: Iterable[ModuleSpan], num_own: int, way_of: WayOf, counted: set[bytes]) -> int:
    """Blocks that are taken if all modules become resident at the same time.

    Args:
        spans: As for `peak`, in any order.
        num_own: As for `peak`.
        way_of: As for `peak`.
        counted: Keys that cost nothing; all others that were looked at are added.
    """
    total = num_own
    for span in spans:
        if span.key not in counted:
            counted.add(span.key)
            way = way_of(span.key)
            if way.encode is None:
                total += way.num_blocks
            else:
                total += at_once(way.encode.spans, way.num_encode_blocks, way_of, counted)
    return total


def in_best_order(spans: Sequence[ModuleSpan], way_of: WayOf) -> list[ModuleSpan]:
    """Spans in the order in which their modules should be encoded for the lowest peak."""
    read = {span.key for span in spans}

    def passing_blocks(span: ModuleSpan) -> int:
        way = way_of(span.key)
        contexts = way.encode.spans if way.encode is not None else ()
        others = sum(way_of(c.key).num_blocks for c in contexts if c.key not in read)
        return way.num_encode_blocks + others - way.num_blocks

    return sorted(spans, key=passing_blocks, reverse=True)


def num_blocks_needed(table: BlockTable, num_tokens: int, way_of: WayOf) -> int:
    """Blocks that a cache must have for a sequence of which nothing is resident.

    Args:
        table: How the sequence lies in its blocks.
        num_tokens: Its length when it is admitted.
        way_of: Says how each module is encoded.
    """
    spans = table.sequence.spans
    return peak(in_best_order(spans, way_of), table.num_own_blocks(num_tokens), way_of)


def fits_surely(
    plan: Plan,
    spans: Iterable[ModuleSpan],
    num_tokens: int,
    *,
    block_size: int,
    num_usable: int,
) -> bool:
    """Whether a cache has room for a sequence, however its modules are encoded and it is laid out.

    Costs next to nothing, and is true wherever the cache is much larger than the prompt.

    Args:
        plan: Its plan.
        spans: What it reads.
        num_tokens: Its length when it is admitted.
        block_size: Tokens a block.
        num_usable: Blocks of the cache.
    """
    read = sum(-(-span.num_module_tokens // block_size) for span in spans)
    # Each holds its tokens, or once more those it is encoded with, in blocks that it may not fill.
    encoded = 2 * plan.num_module_tokens // block_size + 3 * plan.num_modules
    return read + -(-num_tokens // block_size) + encoded <= num_usable


def num_blocks_of_prompt(prompt: ModulePrompt, table: BlockTable, num_tokens: int) -> int:
    """As `num_blocks_needed`, for a prompt by itself.

    Raises:
        PlanError: A recipe of its plan is malformed.
    """
    way_of = cache(lambda key: Way.of(prompt.spec(prompt.origin(key)), table.block_size))
    return num_blocks_needed(table, num_tokens, way_of)
