"""Which cached tokens are computed again: those that a prompt's last tokens attend to the most.

A first pass over the modules as they are, the probe, says how much the last tokens attend to each
token. The chunks attended to the most are then computed in the context of the prompt, each token
behind what lies before it; the rest is reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan
from vllm_promptcache.steps.slots import ranges

Integers = npt.NDArray[np.int64]
Attention = npt.NDArray[np.float32]
Chosen = npt.NDArray[np.bool_]

# Tokens are repaired by so many, so that most blocks are still mapped by reference.
CHUNK_SIZE = 16
# Chunks are numbered from span to span with such gaps that those of different spans differ.
_CHUNKS_A_SPAN = 1 << 32


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """The cached tokens of a sequence, in vLLM's order.

    Attributes:
        spans: Number of the span of each, `[num_cached_tokens]`.
        kept: Its index among the kept tokens of the module.
    """

    spans: Integers
    kept: Integers

    @staticmethod
    def of(table: BlockTable) -> CachedTokens:
        """Those of a sequence that is laid out."""
        parts = table.cached
        numbers, sizes = [p.span for p in parts], [p.kept.num_tokens for p in parts]
        kept = ranges((part.kept.start, part.kept.num_tokens) for part in parts)
        return CachedTokens(np.repeat(numbers, sizes), kept)


def most_attended(modular: ModularRequest, attention: Attention) -> Chosen:
    """Chooses which cached tokens of a request are computed again, `[num_cached_tokens]`.

    Chunks of the modules that the plan names, by the sum of the attention to their tokens.

    Args:
        modular: The request; not changed.
        attention: To each cached token, `[num_cached_tokens]`.
    """
    cached, counts = CachedTokens.of(modular.table), np.array(modular.attended)
    is_candidate = counts[cached.spans] > 0
    numbers = cached.spans * _CHUNKS_A_SPAN + cached.kept // CHUNK_SIZE
    chunks, of_token = np.unique(numbers[is_candidate], return_inverse=True)
    sums = np.bincount(of_token, weights=attention[is_candidate])
    sizes = np.bincount(of_token)
    best = np.argsort(-sums, kind="stable")
    # As many as come nearest to the number of tokens wanted.
    num_chosen = np.searchsorted(sizes[best].cumsum() - sizes[best] / 2, counts.sum())
    is_best = np.zeros(len(chunks), dtype=np.bool_)
    is_best[best[:num_chosen]] = True
    is_chosen = np.zeros(len(is_candidate), dtype=np.bool_)
    is_chosen[is_candidate] = is_best[of_token]
    return is_chosen


def spans_without(modular: ModularRequest, chosen: Chosen) -> dict[int, ModuleSpan]:
    """What a request still reads when some of its cached tokens are computed again.

    Args:
        modular: The request; not changed.
        chosen: Which tokens, `[num_cached_tokens]`.

    Returns:
        The spans by their number in its sequence; one of which nothing is left is left out.
    """
    cached = CachedTokens.of(modular.table)
    spans, kept = cached.spans[~chosen], cached.kept[~chosen]
    order = np.lexsort((kept, spans))
    numbers, starts = np.unique(spans[order], return_index=True)
    parts = zip(numbers.tolist(), np.split(kept[order], starts[1:]), strict=False)
    return dict(_reading(modular.sequence.spans, parts))


def _reading(
    spans: tuple[ModuleSpan, ...], parts: Iterable[tuple[int, Integers]]
) -> Iterator[tuple[int, ModuleSpan]]:
    for number, kept in parts:
        span = spans[number]
        found = ModuleSpan(span.key, span.num_module_tokens, _runs(kept), span.positions)
        yield number, found


def _runs(numbers: Integers) -> tuple[Run, ...]:
    """Ascending integers as runs."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(numbers))
    return tuple(map(Run, numbers[starts].tolist(), lengths.tolist()))
