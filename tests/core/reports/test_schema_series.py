"""Metrics by schema: those of schemas that have gone go as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

from tests.core.reports.test_prometheus import make_metrics
from tests.entrypoints.test_schema_folder import schema
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.core.reports import schema_series as module
from vllm_promptcache.core.reports.schema_series import OTHER, schema_series
from vllm_promptcache.entrypoints.shadow_metrics import shadow_metrics
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import parse_schema


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    """A planner whose schemas have series."""
    planner = make_planner(
        WordTokenizer(), max_model_len=1000, block_size=4, on_remove=schema_series.forget
    )
    monkeypatch.setattr(schema_series, "_served", None)
    monkeypatch.setattr(schema_series, "_names", set())
    schema_series.follow(lambda: planner.schemas.names)
    return planner


def lines() -> list[str]:
    return generate_latest(REGISTRY).decode().splitlines()


def test_sixty_schemas_leave_no_line_behind(planner: Planner) -> None:
    metrics, shadow = make_metrics(), shadow_metrics()
    metrics.observe({"hits": {"gone": 1}, "misses": {"gone": 1}}, 0)
    shadow.record("gone", 0.1, is_same=True)
    before = len(lines())
    for number in range(60):
        name = f"s{number}"
        planner.schemas.add(parse_schema(schema(name, "x")))
        metrics.observe({"hits": {name: 1}, "misses": {name: 1}}, 0)
        shadow.record(name, 0.1, is_same=True)
    assert len(lines()) > before + 60 * 4
    for number in range(60):
        planner.schemas.remove(f"s{number}")
        # A request in flight ends later.
        metrics.observe({"hits": {f"s{number}": 1}}, 0)
    assert len(lines()) == before
    assert f'promptcache_module_hits_total{{engine="0",schema="{OTHER}"}} 61.0' in lines()


def test_not_more_names_than_may_be(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NUM_NAMES", 2)
    for name in "abc":
        planner.schemas.add(parse_schema(schema(name, "x")))
    labels = []
    for name in "abcab":
        with schema_series.label(name) as label:
            labels.append(label)
    assert labels == ["a", "b", OTHER, "a", "b"]
    planner.schemas.remove("a")
    with schema_series.label("c") as label:
        assert label == "c"


IN_FILES = """
import json
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from tests.core.reports.test_prometheus import make_metrics
from vllm_promptcache.core.reports.schema_series import schema_series

def lines():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return [line for line in generate_latest(registry).decode().splitlines() if "hits" in line]

served = {"a", "b"}
schema_series.follow(lambda: served)
metrics = make_metrics()
metrics.observe({"hits": {"a": 1, "b": 2, "none": 4}}, 0)
counts = [len(lines())]
served.discard("a")
schema_series.forget("a")
metrics.observe({"hits": {"a": 1}}, 0)
print(json.dumps([counts[0] - len(lines()), lines()[-2:]]))
"""


def test_servers_that_share_files_show_no_schema_that_has_gone(tmp_path: Path) -> None:
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error::UserWarning:prometheus_client", "-c", IN_FILES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    num_gone, left = json.loads(done.stdout.splitlines()[-1])
    assert num_gone == 1
    assert sorted(left) == [
        f'promptcache_module_hits_total{{engine="0",schema="{OTHER}"}} 5.0',
        'promptcache_module_hits_total{engine="0",schema="b"} 2.0',
    ]
