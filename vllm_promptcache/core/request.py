"""What the scheduler knows of a request that reads prompt modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_promptcache.compat.requests import adapter_of, name_adapter
from vllm_promptcache.core.reports.account import Account
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan
from vllm_promptcache.sequence.spec import ModuleSpec
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
        prompt: Says how the modules that it reads are encoded.
        table: How its sequence lies in its blocks.
        account: What is told of it.
        reads_private_blocks: Whether it may share what earlier requests have behind their modules.
        attended: As the plan has it, for a prompt that is to be repaired by attention; empty if it
            is not, or was.
        mapped: The modules it reads, set when it is being admitted; None if one is missing.
        num_private_hits: Private blocks it was found to share with an earlier request, set with
            `mapped`; they hold the tails of its modules.
        runs_alone: Whether it may outgrow the cache: once it has generated some tokens it could
            not be admitted again, so that nothing may make it wait.
        was_disturbed: Whether it lost modules that it had waited for.
    """

    request: Request
    prompt: ModulePrompt
    table: BlockTable
    account: Account = field(default_factory=Account)
    reads_private_blocks: bool = False
    attended: Sequence[int] = ()
    mapped: list[tuple[ModuleSpan, StoredModule]] | None = None
    num_private_hits: int = 0
    runs_alone: bool = False
    was_disturbed: bool = False

    @property
    def request_id(self) -> str:
        """vLLM's id of the request."""
        return self.request.request_id

    @property
    def sequence(self) -> SequencePlan:
        """What it reads and computes."""
        return self.table.sequence

    @property
    def num_private_hit_tokens(self) -> int:
        """New tokens whose KV an earlier request has computed; tails of modules come before."""
        if not self.num_private_hits:
            return 0
        return self.num_private_hits * self.table.block_size - self.table.num_tail_tokens

    @property
    def num_copied_tokens(self) -> int:
        """Tail tokens that are copied into the request's own blocks when it is admitted."""
        return 0 if self.num_private_hits else self.table.num_tail_tokens

    @property
    def num_own_blocks(self) -> int:
        """Blocks that the request needs beside those it shares."""
        return self.table.num_own_blocks(self.request.num_tokens)

    def store_key(self, key: bytes) -> bytes:
        """Key of a module in the store: KV also depends on the adapter's weights."""
        return key + adapter_of(self.request)

    def store_keys(self) -> list[bytes]:
        """Keys in the store of the modules it reads, and of those that they are made from."""
        origins = [self.store_key(r.origin) for r in self.prompt.relocations.values()]
        return [key for _, key in self.span_keys()] + origins

    def span_keys(self) -> list[tuple[ModuleSpan, bytes]]:
        """The sequence's spans, each with its module's key in the store."""
        adapter = adapter_of(self.request)
        return [(span, span.key + adapter) for span in self.sequence.spans]


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
        num_last = self.sequence.num_new_tokens - self.table.num_inner_tokens
        return min(NUM_OBSERVED_TOKENS, num_last)

    @property
    def slot_indexes(self) -> Slots:
        """Indexes of the slots of all its tokens, in their order, `[num_tokens]`."""
        return ranges((run.start, run.num_tokens) for run in self.table.slots)


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
        first, size = self.table.num_shared_blocks, self.table.block_size
        return blocks[first : first - (-self.spec.num_kept_tokens // size)]

    @property
    def needs_compaction(self) -> bool:
        """Whether kept tokens have to move: a context tail or placeholders lie before them."""
        kept_runs = self.spec.kept_runs
        return self.table.num_tail_tokens > 0 or len(kept_runs) > 1 or kept_runs[0].start > 0
