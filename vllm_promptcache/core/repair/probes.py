"""Probes under way: a pass over a prompt before the prompt itself, for repair by attention."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vllm_promptcache.core.private_blocks import lay_out_anew
from vllm_promptcache.core.repair.attended import (
    Attention,
    Chosen,
    most_attended,
    spans_without,
)
from vllm_promptcache.core.repair.memory import RepairMemory
from vllm_promptcache.core.request import ModularRequest, ProbeRequest, internal_request
from vllm_promptcache.log import module_logger
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.spans import SequencePlan

logger = module_logger(__name__)


@dataclass(slots=True)
class Probes:
    """Owns the probe of each request that waits for one, by the request's id.

    Attributes:
        max_blocks: Blocks that one request may need; what would need more is not repaired.
        max_rows: Rows of attention that one request may take; None for any number.
        memory: What was repaired in earlier prompts.
    """

    max_blocks: int
    max_rows: int | None = None
    memory: RepairMemory = field(default_factory=RepairMemory)
    _by_asker: dict[str, ProbeRequest] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _orphans: list[str] = field(default_factory=list)
    _counter: Iterator[int] = field(default_factory=itertools.count)

    def recall(self, asker: ModularRequest) -> None:
        """Repairs a new request as an earlier one that it begins with, if there is any."""
        if (chosen := self.memory.find(asker)) is not None:
            self._repair(asker, chosen)

    def start(self, asker: ModularRequest) -> ProbeRequest | None:
        """Makes the probe of a request that has to wait for one; None if it is under way."""
        if asker.request_id in self._by_asker:
            return None
        probe = ProbeRequest(
            internal_request(
                f"prompt-module-probe-{next(self._counter)}",
                list(asker.request.prompt_token_ids or ()),
                asker.request,
            ),
            asker.prompt,
            asker.table,
            # What the probe waits for, and is encoded for it, is told of the other one.
            asker.account,
            asker=asker,
        )
        self._by_asker[asker.request_id] = probe
        return probe

    def of(self, asker: ModularRequest) -> ProbeRequest | None:
        """The probe that a request waits for, None if it waits for none."""
        return self._by_asker.get(asker.request_id)

    def answer(self, attention: Mapping[str, Attention]) -> None:
        """Repairs the requests whose probes have told what their last tokens attend to."""
        for asker_id, probe in list(self._by_asker.items()):
            if (found := attention.get(probe.request_id)) is not None:
                del self._by_asker[asker_id]
                # One that was preempted while its last step ran would begin again, for nobody.
                self._orphans.append(probe.request_id)
                chosen = most_attended(probe.asker, found[: probe.table.num_cached_tokens])
                self.memory.add(probe.asker, chosen)
                self._repair(probe.asker, chosen)

    def end(self, probe: ProbeRequest) -> None:
        """A probe has ended, in whatever way; its answer may come later in the same step."""
        if self._by_asker.get(probe.asker.request_id) is probe:
            self._ended.add(probe.asker.request_id)

    def give_up(self) -> None:
        """Lets requests go on as they are whose probes have ended without an answer."""
        for asker_id in self._ended:
            if (probe := self._by_asker.pop(asker_id, None)) is not None:
                self._leave_as_it_is(probe.asker, "attention cannot be measured on this engine")
        self._ended.clear()

    def leave(self, asker: ModularRequest) -> None:
        """A request has ended: it needs no answer any more."""
        if (probe := self._by_asker.pop(asker.request_id, None)) is not None:
            self._orphans.append(probe.request_id)

    def take_orphans(self) -> list[str]:
        """Returns the ids of probes that nobody waits for any more, to be aborted.

        Most of those that have answered have ended by then.
        """
        orphans, self._orphans = self._orphans, []
        return orphans

    def _repair(self, asker: ModularRequest, chosen: Chosen) -> None:
        spans = spans_without(asker, chosen)
        sequence = SequencePlan.of(spans.values(), asker.prompt.plan.positions)
        table = BlockTable.of(sequence, asker.table.block_size)
        if table.num_blocks(asker.request.num_tokens) > self.max_blocks:
            self._leave_as_it_is(asker, "it would not fit the KV cache")
            return
        num_rows = table.num_attention_rows
        if self.max_rows is not None and num_rows > self.max_rows:
            self._leave_as_it_is(asker, f"it would take {num_rows} rows of attention")
            return
        before = asker.sequence.spans
        asker.account.repairs(n for n, s in spans.items() if s.num_tokens < before[n].num_tokens)
        self._follow(asker, table, list(spans))

    def _leave_as_it_is(self, asker: ModularRequest, reason: str) -> None:
        self._follow(asker, asker.table)
        logger.warning_once("A prompt is not repaired by attention: %s", reason)

    def _follow(
        self, asker: ModularRequest, table: BlockTable, span_numbers: list[int] | None = None
    ) -> None:
        if span_numbers is not None:
            asker.account.still_reads(span_numbers)
        asker.attended = ()
        lay_out_anew(asker, table)
