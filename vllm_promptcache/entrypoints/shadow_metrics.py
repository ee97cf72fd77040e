"""Metrics of the shadow check, named `promptcache_shadow_*`."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Histogram

from vllm_promptcache.core.reports.schema_series import LABEL, PREFIX, schema_series

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_BY_SCHEMA = [LABEL]


class ShadowMetrics:
    """What comparisons have found.

    Attributes:
        compared: Prompts that were compared, by schema.
        same: Of these, those with the same likeliest first token, by schema.
        divergence: KL(plain || reused) of the first token in nats, by schema.
        dropped: Prompts that were not compared, since too many were waiting.
        failed: Prompts whose comparison failed.
    """

    def __init__(self) -> None:
        self.compared = _counter("compared", "Prompts compared with a plain prefill.", _BY_SCHEMA)
        self.same = _counter(
            "same_first_token", "Of these, those with the same likeliest first token.", _BY_SCHEMA
        )
        self.divergence = Histogram(
            f"{PREFIX}shadow_divergence_nats",
            "KL divergence of the first token of a plain prefill from that with modules.",
            _BY_SCHEMA,
            buckets=_BUCKETS,
        )
        by_schema = (self.compared, self.same, self.divergence)
        schema_series.own({f"shadow{number}": metric for number, metric in enumerate(by_schema)})
        self.dropped = _counter("dropped", "Prompts not compared: too many were waiting.")
        self.failed = _counter("failed", "Prompts whose comparison failed.")

    def record(self, schema: str, divergence: float, *, is_same: bool) -> None:
        """Records a comparison.

        Args:
            schema: Name of the prompt's schema.
            divergence: KL(plain || reused) in nats.
            is_same: Whether both have the same likeliest first token.
        """
        with schema_series.label(schema) as label:
            self.compared.labels(label).inc()
            self.same.labels(label).inc(is_same)
            self.divergence.labels(label).observe(divergence)


@cache
def shadow_metrics() -> ShadowMetrics:
    """Those of this process, made when first needed; see `plan_errors.py`."""
    return ShadowMetrics()


def _counter(name: str, text: str, labels: list[str] | None = None) -> Counter:
    return Counter(f"{PREFIX}shadow_{name}", text, labels or [])
