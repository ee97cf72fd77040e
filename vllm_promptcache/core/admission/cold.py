"""Modules that are nowhere: a prompt may compute them itself, as a plain prefill does.

It is no slower than an encode, and nearer to a plain prefill: what a prompt computes sees all that
lies before it. But nobody else can read it. So modules are encoded once they have been asked for
often enough, or while the engine has nothing else to do and they take no other's place. Documents
that never come back cost users nothing but their own prefill.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from vllm_promptcache.core.adapters import runs_with
from vllm_promptcache.core.admission.encodes import Encodes
from vllm_promptcache.core.private_blocks import lay_out_anew
from vllm_promptcache.core.repair.probes import Probes
from vllm_promptcache.core.request import InternalRequest, ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.spans import SequencePlan
from vllm_promptcache.store import ModuleStore
from vllm_promptcache.store.bounded import forget_oldest, forget_oldest_of_size

# Modules whose requests are counted; those not asked for longest are forgotten.
MAX_NUM_COUNTED = 65_536
# Requests whose cold modules wait for an idle engine, and tokens of them; older ones give way.
MAX_NUM_LEFT_OUT = 64
MAX_NUM_LEFT_OUT_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A request that computed modules, and the keys of those, the first one last."""

    modular: ModularRequest
    keys: list[bytes]


@dataclass(slots=True)
class ColdModules:
    """Says which modules requests compute themselves, and which of these may be encoded later.

    Attributes:
        store: The resident modules.
        tiers: Where others may be.
        encodes: The encodes under way.
        probes: The probes under way.
        encode_after: Requests that ask for a module before it is encoded, the last one included;
            with 1, nothing is ever left out.
        max_rows: Rows of attention that a request may take; None for any number.
    """

    store: ModuleStore
    tiers: ModuleTiers
    encodes: Encodes
    probes: Probes
    encode_after: int = 1
    max_rows: int | None = None
    # Ordered by time, the oldest first.
    _counts: dict[bytes, int] = field(default_factory=dict)
    # Ordered by time; and what is encoded for one of them.
    _left_out: dict[str, LeftOut] = field(default_factory=dict)
    _begun: tuple[LeftOut, bytes] | None = None

    def __bool__(self) -> bool:
        return bool(self._left_out)

    def asked(self, modular: ModularRequest) -> None:
        """Takes note of what a new request asks for."""
        if self.encode_after == 1 or modular.prompt.plan.is_warming:
            return
        for origin in {self._origin(modular, span.key) for span in modular.sequence.spans}:
            key = modular.store_key(origin)
            self._counts[key] = self._counts.pop(key, 0) + 1
        forget_oldest(self._counts, MAX_NUM_COUNTED)

    def leave_out(self, modular: ModularRequest) -> Collection[bytes]:
        """Lets a waiting request compute what is cold of the modules that it would read.

        Where there are no others it computes the schema's own text as well, and thus is a plain
        prefill. Mutates the request.

        Returns:
            Keys of the modules in its plan that it does not read any more.
        """
        if self.encode_after == 1 or not self._may_change(modular):
            return ()
        # It is asked in each step in which the request waits.
        if not (cold := self._cold(modular)):
            return ()
        spans = modular.sequence.spans
        kept = [number for number in range(len(spans)) if number not in cold]
        sequence = SequencePlan.of((spans[n] for n in kept), modular.prompt.plan.positions)
        table = BlockTable.of(sequence, modular.table.block_size)
        if self.max_rows is not None and table.num_attention_rows > self.max_rows:
            return ()
        attended = [modular.attended[number] for number in kept] if modular.attended else []
        modular.attended = attended if any(attended) else ()
        for number in cold:
            modular.account.computes(number, spans[number].num_tokens)
        modular.account.still_reads(kept)
        lay_out_anew(modular, table)
        self._remember(modular, [spans[number].key for number in cold])
        return {spans[number].key for number in cold}

    def _remember(self, modular: ModularRequest, keys: Sequence[bytes]) -> None:
        origins = [self._origin(modular, key) for key in reversed(keys)]
        self._left_out[modular.request_id] = LeftOut(modular, origins)
        forget_oldest(self._left_out, MAX_NUM_LEFT_OUT)
        forget_oldest_of_size(
            self._left_out, MAX_NUM_LEFT_OUT_TOKENS, lambda left: left.modular.request.num_tokens
        )

    def next(self) -> tuple[ModularRequest, bytes] | None:
        """Returns a request that computed modules, and one of them for which there is room.

        It is not returned again. The newest request comes first: more of a conversation may follow.

        Raises:
            PlanError: A packed module of its plan is malformed.
        """
        num_free = self._num_without_modules() if self._left_out else 0
        while self._left_out:
            name, left = self._left_out.popitem()
            while left.keys:
                key = left.keys.pop()
                has_room = _num_blocks(left.modular, key) <= num_free
                if has_room and not self._is_somewhere(left.modular, key):
                    self._left_out[name] = left
                    self._begun = left, key
                    return left.modular, key
        return None

    def interrupt(self) -> None:
        """Takes note that what `next` returned last was given up for another's sake."""
        if self._begun is not None:
            (left, key), self._begun = self._begun, None
            left.keys.append(key)
            self._left_out[left.modular.request_id] = left

    def forget(self, lora_int_ids: Collection[int]) -> None:
        """Forgets requests with adapters whose weights have changed, or are gone."""
        for name, left in list(self._left_out.items()):
            if runs_with(left.modular.request, lora_int_ids):
                del self._left_out[name]
        if self._begun and runs_with(self._begun[0].modular.request, lora_int_ids):
            self._begun = None

    def _num_without_modules(self) -> int:
        """Blocks in which a module takes no other's place."""
        num_held = sum(len(module.blocks) for module in self.store.modules.values())
        return self.store.block_pool.num_gpu_blocks - 1 - num_held  # one is vLLM's null block

    def _may_change(self, modular: ModularRequest) -> bool:
        """Whether it is a user's request that has not begun."""
        is_ours = isinstance(modular, InternalRequest) or modular.prompt.plan.is_warming
        has_begun = modular.request.num_preemptions or self.probes.of(modular) is not None
        return not is_ours and not has_begun

    def _cold(self, modular: ModularRequest) -> Collection[int]:
        """Numbers of the spans that a request computes itself, in order."""
        spans, plan = modular.sequence.spans, modular.prompt.plan
        cold = [number for number, span in enumerate(spans) if self._is_cold(modular, span.key)]
        root = plan.spans[0].key if plan.has_root else None
        others = {number for number, span in enumerate(spans) if span.key != root}
        # What the schema says itself, behind modules, has not seen them.
        return range(len(spans)) if others and others.issubset(cold) else cold

    def _is_cold(self, modular: ModularRequest, key: bytes) -> bool:
        origin = self._origin(modular, key)
        num_asked = self._counts.get(modular.store_key(origin), 0)
        is_resident = self.store.lookup(modular.store_key(key)) is not None
        is_somewhere = is_resident or self._is_somewhere(modular, origin)
        return not is_somewhere and num_asked < self.encode_after

    def _is_somewhere(self, modular: ModularRequest, origin: bytes) -> bool:
        key = modular.store_key(origin)
        is_resident = self.store.lookup(key) is not None
        return is_resident or self.tiers.may_have(key) or key in self.encodes

    def _origin(self, modular: ModularRequest, key: bytes) -> bytes:
        """Key in the plan of what a module of it is made from."""
        relocation = self.tiers.relocation_of(modular, key)
        return key if relocation is None else relocation.origin


def _num_blocks(modular: ModularRequest, key: bytes) -> int:
    """Blocks that a module of a plan takes."""
    return -(-modular.prompt.spec(key).num_kept_tokens // modular.table.block_size)
