"""The engine's metrics for Prometheus, all named `promptcache_*`.

Its statistics come with each step, by the connector API; they are observed in the front end.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

from prometheus_client import REGISTRY
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics

from vllm_promptcache.core.reports.schema_series import LABEL, PREFIX, schema_series

COUNTERS = {
    "hits": ("module_hits", "Modules that requests found resident, by schema."),
    "misses": ("module_misses", "Modules that were encoded for a request, by schema."),
    "tokens_reused": ("tokens_reused", "Prompt tokens whose KV was read from resident modules."),
    "tokens_encoded": ("tokens_encoded", "Tokens of modules that were encoded."),
    "tokens_restored": ("tokens_restored", "Tokens of modules that came back from host memory."),
    "tokens_copied": ("tokens_copied", "Tokens of module tails that were copied."),
    "tokens_computed": ("tokens_computed", "New tokens of prompts that read modules."),
    "cold": ("cold_modules", "Modules that prompts computed themselves: they were nowhere."),
    "promoted": ("promoted_requests", "Requests served exactly, by promoted modules."),
    "partly_promoted": (
        "partly_promoted_requests",
        "Requests that read promoted modules, and others behind these.",
    ),
    "evictions": ("evictions", "Modules that lost a block to other requests or to a reset."),
}
HISTOGRAMS = {
    "encode_seconds": ("encode_seconds", "From the start of a module's encode to its end."),
    "wait_seconds": ("wait_seconds", "How long requests waited for modules that were missing."),
}
GAUGES = {
    "resident_modules": ("resident_modules", "Modules in the KV cache."),
    "resident_blocks": ("resident_blocks", "KV cache blocks of these modules."),
    "pinned_blocks": ("pinned_blocks", "Of these, blocks held for requests near admission."),
}
BY_SCHEMA = ("hits", "misses")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ModulePromMetrics(KVConnectorPromMetrics):
    """Turns the engines' `ModuleStats` into metrics, labelled like vLLM's own.

    Those of the engine that was started last in this process are registered; vLLM does the same.
    """

    _registered: ClassVar[list[Any]] = []

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._unregister_previous()
        self._counters = {
            key: self._counter_cls(
                name=PREFIX + name, documentation=text, labelnames=self._labels(key)
            )
            for key, (name, text) in COUNTERS.items()
        }
        self._histograms = {
            key: self._histogram_cls(
                name=PREFIX + name, documentation=text, labelnames=labelnames, buckets=_BUCKETS
            )
            for key, (name, text) in HISTOGRAMS.items()
        }
        self._gauges = {
            key: self._gauge_cls(
                name=PREFIX + name,
                documentation=text,
                labelnames=labelnames,
                multiprocess_mode="mostrecent",
            )
            for key, (name, text) in GAUGES.items()
        }
        for collectors in (self._counters, self._histograms, self._gauges):
            self._registered.extend(collectors.values())
        schema_series.own({key: self._counters[key] for key in BY_SCHEMA})

    def _unregister_previous(self) -> None:
        for collector in self._registered:
            with suppress(KeyError):  # Ray's kind of metric is not in this registry
                REGISTRY.unregister(collector)
        self._registered.clear()

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Records the statistics of one engine."""
        labels = self.per_engine_labelvalues[engine_idx]
        for key, value in transfer_stats_data.items():
            if key in BY_SCHEMA:
                for schema, number in value.items():
                    with schema_series.label(schema) as label:
                        self._counters[key].labels(*labels, label).inc(number)
            elif key in self._counters:
                self._counters[key].labels(*labels).inc(value)
            elif key in self._gauges:
                self._gauges[key].labels(*labels).set(value)
            else:
                for seconds in value:
                    self._histograms[key].labels(*labels).observe(seconds)

    def _labels(self, key: str) -> list[str]:
        return [*self._labelnames, LABEL] if key in BY_SCHEMA else self._labelnames
