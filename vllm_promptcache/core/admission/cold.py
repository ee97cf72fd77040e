"""Modules that are nowhere: a prompt may compute them itself, as a plain prefill does.

It is no slower than an encode, and nearer to a plain prefill: what a prompt computes sees all that
lies before it. But nobody else can read it. So modules are encoded once they have been asked for
often enough, and documents that never come back cost nothing but their own prefill.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from vllm_promptcache.core.admission.encodes import Encodes
from vllm_promptcache.core.private_blocks import lay_out_anew
from vllm_promptcache.core.repair.probes import Probes
from vllm_promptcache.core.request import InternalRequest, ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.spans import SequencePlan
from vllm_promptcache.store import ModuleStore
from vllm_promptcache.store.bounded import forget_oldest

# Modules whose requests are counted; those not asked for longest are forgotten.
MAX_NUM_COUNTED = 65_536


@dataclass(slots=True)
class ColdModules:
    """Says which modules requests compute themselves.

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

    def asked(self, modular: ModularRequest) -> None:
        """Takes note of what a new request asks for."""
        if self.encode_after == 1 or modular.prompt.plan.is_warming:
            return
        for key in {self._origin(modular, span.key) for span in modular.sequence.spans}:
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
        return {spans[number].key for number in cold}

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
        is_somewhere = (
            self.store.lookup(modular.store_key(key)) is not None
            or self.store.lookup(origin) is not None
            or self.tiers.may_have(origin)
            or origin in self.encodes
        )
        return not is_somewhere and self._counts.get(origin, 0) < self.encode_after

    def _origin(self, modular: ModularRequest, key: bytes) -> bytes:
        """Key in the store of what a module of a plan is made from."""
        relocation = self.tiers.relocation_of(modular, key)
        return modular.store_key(key if relocation is None else relocation.origin)
