"""Counters of what modules did for requests, on their way to Prometheus by vLLM's connector API."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from vllm_promptcache.core.reports.usage import num_encoded_tokens
from vllm_promptcache.core.request import EncodeRequest, ModularRequest
from vllm_promptcache.store import ModuleStore, StoredModule
from vllm_promptcache.tracing import trace_work

# Counting what is resident walks all modules.
_SECONDS_BETWEEN_WALKS = 1.0


@dataclass
class ModuleStats(KVConnectorStats):
    """What happened in one or more steps; travels as a dict.

    Its `data` maps a counter's name to a number, or to a mapping from schema to number; that of a
    histogram to a list of seconds; that of a gauge to its last value.
    """

    def aggregate(self, other: KVConnectorStats) -> ModuleStats:
        """Adds later stats to these and returns them."""
        for name, value in other.data.items():
            mine = self.data.get(name)
            if mine is None or name.startswith(("resident", "pinned")):
                self.data[name] = value
            elif isinstance(value, Mapping):
                self.data[name] = dict(Counter(mine) + Counter(value))
            else:
                self.data[name] = mine + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """The sums, for vLLM's log line."""
        counters = ("tokens_reused", "tokens_encoded", "tokens_computed")
        return {name: self.data.get(name, 0) for name in counters}

    def reset(self) -> None:
        """Forgets everything."""
        self.data.clear()

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not self.data


@dataclass(slots=True)
class ModuleMetrics:
    """Counts for one engine, in the scheduler's thread; plain requests cost it nothing.

    Attributes:
        store: For what is resident.
    """

    store: ModuleStore
    _stats: ModuleStats = field(default_factory=ModuleStats)
    _num_evictions: int = 0
    _walked: float = 0.0

    def admitted(self, modular: ModularRequest) -> None:
        """A request was admitted with all its modules."""
        keys = {key for _, key in modular.span_keys()}
        account = modular.account
        num_missed = len(keys & account.encoded_keys)
        self._add("misses", {account.schema: num_missed})
        self._add("hits", {account.schema: len(keys) - num_missed})
        num_cached = modular.table.num_cached_tokens
        self._add("tokens_reused", num_cached - num_encoded_tokens(modular))
        self._add("tokens_copied", modular.num_copied_tokens)
        # After a preemption, with what the request has generated so far.
        num_after_modules = modular.request.num_tokens - num_cached
        self._add("tokens_computed", num_after_modules - modular.num_private_hit_tokens)
        if account.cold:
            self._add("cold", len(account.cold))
        if account.is_promoted:
            self._add("promoted", 1)
        elif account.num_links:
            self._add("partly_promoted", 1)
        if account.has_waited:
            seconds = time.monotonic() - account.since
            self._add("wait_seconds", [seconds])
            trace_work("wait", modular.request, seconds, modules=num_missed)

    def encoded(self, encode: EncodeRequest) -> None:
        """An encode has ended and its module is resident."""
        num_tokens, seconds = encode.spec.num_kept_tokens, time.monotonic() - encode.account.since
        self._add("tokens_encoded", num_tokens)
        self._add("encode_seconds", [seconds])
        trace_work("encode", encode.request, seconds, tokens=num_tokens)

    def restored(self, module: StoredModule) -> None:
        """A module came back from host memory or disk."""
        self._add("tokens_restored", module.num_tokens)

    def take(self) -> ModuleStats | None:
        """Returns what happened since the last call, None if nothing did."""
        if self._stats.is_empty():
            return None
        evicted = self.store.stats.num_evictions
        self._add("evictions", evicted - self._num_evictions)
        self._num_evictions = evicted
        if time.monotonic() - self._walked > _SECONDS_BETWEEN_WALKS:
            self._walk()
        stats, self._stats = self._stats, ModuleStats()
        return stats

    def _walk(self) -> None:
        modules = self.store.modules.values()
        self._stats.data["resident_modules"] = len(modules)
        self._stats.data["resident_blocks"] = sum(len(module.blocks) for module in modules)
        self._stats.data["pinned_blocks"] = len(set(self.store.pinned_block_ids))
        self._walked = time.monotonic()

    def _add(self, name: str, value: Any) -> None:
        self._stats.aggregate(ModuleStats({name: value}))
