"""What the scheduler knows of a request that reads prompt modules."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_promptcache.compat.requests import adapter_of, name_adapter
from vllm_promptcache.sequence.codec import PackedPlan, unpack_module
from vllm_promptcache.sequence.private_order import IndexOffsets, PrivateOrder
from vllm_promptcache.sequence.sequence import ModuleSpan, ModuleSpec, Relocation, SequencePlan
from vllm_promptcache.steps.slots import Slots, ranges
from vllm_promptcache.store import StoredModule

T = TypeVar("T")

# A prompt's last tokens: those behind the question that begin the answer, in most chat templates.
NUM_OBSERVED_TOKENS = 3


@dataclass(slots=True, eq=False)
class ModularRequest:
    """A request whose sequence reads modules.

    Attributes:
        request: vLLM's request.
        sequence: Its plan.
        modules: Packed modules by key: all that `sequence` reads, and their contexts.
        block_size: Tokens a block.
        relocations: Modules that `sequence` reads at another place than where `modules` has them,
            by key.
        reads_private_blocks: Whether it may share what earlier requests have behind their modules.
        mapped: The modules it reads, set when it is being admitted; None if one is missing.
        num_private_hits: Private blocks it was found to share with an earlier request, set with
            `mapped`; they hold the tails of its modules.
        runs_alone: Whether it may outgrow the cache: once it has generated some tokens it could
            not be admitted again, so that nothing may make it wait.
        was_disturbed: Whether it lost modules that it had waited for.
        schema: Name of its prompt's schema; empty for an encode.
        since: When it arrived, in seconds of the monotonic clock.
        exact_paths: Paths of the modules it reads where they were promoted; else the plan's hold.
        attended: As the plan has it; empty if nothing is to be repaired by attention, or once it
            was chosen.
        span_numbers: For each span its number in the plan, once the prompt was repaired: a span of
            which nothing is left is not read.
        has_waited: Whether a module was missing when it was looked for.
        encoded_keys: Modules it found missing, so that they were encoded for it.
    """

    request: Request
    sequence: SequencePlan
    modules: Mapping[bytes, bytes]
    block_size: int
    relocations: Mapping[bytes, Relocation] = field(default_factory=dict)
    reads_private_blocks: bool = False
    mapped: list[tuple[ModuleSpan, StoredModule]] | None = None
    num_private_hits: int = 0
    runs_alone: bool = False
    was_disturbed: bool = False
    encoded_keys: set[bytes] = field(default_factory=set)
    schema: str = ""
    since: float = field(default_factory=time.monotonic)
    exact_paths: list[str] | None = None
    attended: Sequence[int] = ()
    span_numbers: list[int] | None = None
    has_waited: bool = False
    offsets: IndexOffsets = field(init=False)
    num_shared_blocks: int = field(init=False)
    num_tail_tokens: int = field(init=False)
    order: PrivateOrder | None = field(init=False)

    @classmethod
    def of(
        cls, request: Request, plan: PackedPlan, sequence: SequencePlan, block_size: int
    ) -> ModularRequest:
        """Makes the state of a new request that follows a plan by one of its sequences."""
        return cls(
            request,
            sequence,
            dict(plan.modules),
            block_size,
            relocations={found.key: found for found in plan.relocations},
            schema=plan.schema,
            reads_private_blocks=not request.skip_reading_prefix_cache,
        )

    def __post_init__(self) -> None:
        self._lay_out()

    def follow(self, sequence: SequencePlan, span_numbers: list[int]) -> None:
        """Reads and computes what a repaired sequence says; only before it is admitted."""
        self.sequence, self.span_numbers, self.attended = sequence, span_numbers, ()
        self._lay_out()

    def _lay_out(self) -> None:
        spans, size = self.sequence.spans, self.block_size
        num_cached = self.sequence.num_cached_tokens
        self.offsets = IndexOffsets.of(num_cached, self.sequence.position_runs)
        self.num_shared_blocks = sum(span.num_full_blocks(size) for span in spans)
        self.num_tail_tokens = sum(span.num_tail_tokens(size) for span in spans)
        self.order = PrivateOrder.of(self.sequence, size, self.num_shared_blocks)

    @property
    def request_id(self) -> str:
        """vLLM's id of the request."""
        return self.request.request_id

    @property
    def num_encoded_tokens(self) -> int:
        """Tokens it reads of modules that were encoded for it."""
        return sum(span.num_tokens for span, key in self.span_keys() if key in self.encoded_keys)

    @property
    def num_private_hit_tokens(self) -> int:
        """New tokens whose KV an earlier request has computed; tails of modules come before."""
        if not self.num_private_hits:
            return 0
        return self.num_private_hits * self.block_size - self.num_tail_tokens

    @property
    def num_copied_tokens(self) -> int:
        """Tail tokens that are copied into the request's own blocks when it is admitted."""
        return 0 if self.num_private_hits else self.num_tail_tokens

    @property
    def tail_ranges(self) -> list[tuple[int, int]]:
        """Where the tails lie in the sequence: `(index, num_tokens)` of each, in their order."""
        if self.order is None:
            return [(self.num_shared_blocks * self.block_size, self.num_tail_tokens)]
        return [(run.start, run.num_tokens) for run in self.order.tails]

    @property
    def num_ordered_tokens(self) -> int:
        """Private tokens up to the last tail: those that are copied or interleaved with these."""
        return self.num_tail_tokens + (self.order.num_new_tokens if self.order else 0)

    @property
    def num_own_blocks(self) -> int:
        """Blocks that the request needs beside those it shares."""
        return -(-self.request.num_tokens // self.block_size) - self.num_shared_blocks

    def store_key(self, key: bytes) -> bytes:
        """Key of a module in the store: KV also depends on the adapter's weights."""
        return key + adapter_of(self.request)

    def spec_of(self, key: bytes) -> ModuleSpec:
        """What is needed to encode a module that it reads, at the place where it reads it.

        Raises:
            PlanError: The plan's packed module is malformed.
        """
        if (relocation := self.relocations.get(key)) is not None:
            return self.spec_of(relocation.origin).relocated(relocation)
        return unpack_module(self.modules.get(key), key=key)

    def store_keys(self) -> list[bytes]:
        """Keys in the store of the modules it reads, and of those that they are made from."""
        origins = [self.store_key(found.origin) for found in self.relocations.values()]
        return [key for _, key in self.span_keys()] + origins

    def span_keys(self) -> list[tuple[ModuleSpan, bytes]]:
        """The sequence's spans, each with its module's key in the store."""
        return [(span, self.store_key(span.key)) for span in self.sequence.spans]


def internal_request(request_id: str, token_ids: list[int], user: Request) -> Request:
    """A request of the scheduler's own that runs some tokens once, on behalf of a user's."""
    request = Request(
        request_id=request_id,
        prompt_token_ids=token_ids,
        sampling_params=SamplingParams(max_tokens=1, temperature=0.0, detokenize=False),
        pooling_params=None,
        client_index=user.client_index,
        arrival_time=user.arrival_time,
        lora_request=user.lora_request,
        priority=user.priority,
        trace_headers=user.trace_headers,
    )
    if user.lora_request is not None:
        name_adapter(request, adapter_of(user))
    return request


class InternalRequest(ModularRequest):
    """A request of the scheduler's own: its output is for nobody, its blocks are never shared."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class ProbeRequest(InternalRequest):
    """A pass over another request's prompt, which measures what its last tokens attend to.

    Attributes:
        asker: The other request.
    """

    asker: ModularRequest = field(kw_only=True)

    @property
    def num_observed(self) -> int:
        """How many of its last tokens are observed: only such as see all modules."""
        num_inner = self.order.num_new_tokens if self.order else 0
        return min(NUM_OBSERVED_TOKENS, self.sequence.num_new_tokens - num_inner)

    @property
    def slot_indexes(self) -> Slots:
        """Indexes of the slots of all its tokens, in their order, `[num_tokens]`."""
        first, num_new = self.sequence.num_cached_tokens, self.sequence.num_new_tokens
        new = [(first, num_new)]
        if self.order is not None:
            index, new = first, []
            for num_tokens, offset in self.order.slots.slices(first, num_new):
                new.append((index + offset, num_tokens))
                index += num_tokens
        shared = (0, self.num_shared_blocks * self.block_size)
        return ranges([shared, *self.tail_ranges, *new])


@dataclass(slots=True, eq=False)
class EncodeRequest(InternalRequest):
    """An internal request that runs a module's tokens through the model once.

    Attributes:
        spec: The module.
        key: The module's key in the store.
        waiters: Ids of the requests that wait for it.
        written_blocks: Ids of the blocks that hold the module once the step that was scheduled
            last has run; None before that step and after a preemption.
    """

    spec: ModuleSpec = field(kw_only=True)
    key: bytes = field(kw_only=True)
    waiters: set[str] = field(default_factory=set, kw_only=True)
    written_blocks: list[int] | None = field(default=None, kw_only=True)

    def module_blocks(self, blocks: Sequence[T]) -> Sequence[T]:
        """Those of the request's blocks (or block ids) that become the module's."""
        num_blocks = -(-self.spec.num_kept_tokens // self.block_size)
        return blocks[self.num_shared_blocks : self.num_shared_blocks + num_blocks]

    @property
    def needs_compaction(self) -> bool:
        """Whether kept tokens have to move: a context tail or placeholders lie before them."""
        kept_runs = self.spec.kept_runs
        return self.num_tail_tokens > 0 or len(kept_runs) > 1 or kept_runs[0].start > 0
