"""Metrics: from the engine's statistics to Prometheus, and the dashboard that shows them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from prometheus_client import Counter, Gauge, Histogram, generate_latest

from vllm_promptcache.core.reports.metrics import ModuleStats
from vllm_promptcache.core.reports.prometheus import (
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    ModulePromMetrics,
)
from vllm_promptcache.core.reports.schema_series import PREFIX, schema_series
from vllm_promptcache.entrypoints.plan_errors import count_plan_error
from vllm_promptcache.errors import PMLError


@pytest.fixture(autouse=True)
def travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one schema that is served."""
    monkeypatch.setattr(schema_series, "_served", lambda: {"travel"})


class _Config:
    kv_transfer_config = None


def make_metrics() -> ModulePromMetrics:
    types = {Gauge: Gauge, Counter: Counter, Histogram: Histogram}
    return ModulePromMetrics(_Config(), types, ["engine"], {0: ["0"]})


def test_statistics_add_up() -> None:
    one = ModuleStats({"hits": {"a": 1}, "tokens_reused": 5, "resident_blocks": 9})
    two = ModuleStats({"hits": {"a": 2, "b": 1}, "tokens_reused": 6, "resident_blocks": 3})
    assert one.aggregate(two).data == {
        "hits": {"a": 3, "b": 1},
        "tokens_reused": 11,
        "resident_blocks": 3,
    }
    lists = ModuleStats({"wait_seconds": [1.0]}).aggregate(ModuleStats({"wait_seconds": [2.0]}))
    assert lists.data == {"wait_seconds": [1.0, 2.0]}
    assert ModuleStats().is_empty()


def test_a_second_engine_in_one_process_takes_over_the_metrics() -> None:
    make_metrics().observe({"tokens_reused": 1}, 0)
    make_metrics().observe({"tokens_reused": 2}, 0)
    assert 'promptcache_tokens_reused_total{engine="0"} 2.0' in generate_latest().decode()


def test_every_statistic_becomes_a_metric_and_the_dashboard_uses_no_other() -> None:
    metrics = make_metrics()
    data = dict.fromkeys((*COUNTERS, *GAUGES), 7) | {key: [0.2] for key in HISTOGRAMS}
    metrics.observe(data | {"hits": {"travel": 3}, "misses": {"travel": 1}}, 0)
    count_plan_error(PMLError("bad", "<prompt>", 1, 1, "x", 0))
    text = generate_latest().decode()
    assert 'promptcache_module_hits_total{engine="0",schema="travel"} 3.0' in text
    assert 'promptcache_tokens_reused_total{engine="0"} 7.0' in text
    assert 'promptcache_resident_blocks{engine="0"} 7.0' in text
    assert 'promptcache_wait_seconds_sum{engine="0"} 0.2' in text
    assert 'promptcache_plan_errors_total{kind="pml"}' in text
    dashboard = files("vllm_promptcache.examples").joinpath("grafana-dashboard.json").read_text()
    used = set(re.findall(rf"{PREFIX}\w+", dashboard))
    assert used
    assert used <= set(re.findall(rf"^({PREFIX}\w+)", text, re.MULTILINE))
