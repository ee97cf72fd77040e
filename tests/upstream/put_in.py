"""A plugin of pytest that puts a scheduler into vLLM's tests.

It runs where `tests` are vLLM's, so nothing else of this project's tests can be imported. What it
changes: the class of the scheduler, with the connector and the settings that an engine with prompt
modules gives it, and the model, which has to be here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.config import ModelConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiKVConnectorMetadata
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_promptcache.config import CONFIG_KEY
from vllm_promptcache.connector.composed_connector import ComposedConnector, modules_alone
from vllm_promptcache.core.scheduler import PromptModuleAsyncScheduler, PromptModuleScheduler
from vllm_promptcache.engine import compose_connectors
from vllm_promptcache.steps.step import StepMetadata

IS_OURS = os.environ["UPSTREAM_SCHEDULER"] == "ours"
IS_ASYNC = os.environ["UPSTREAM_SCHEDULING"] == "async"
# Any model with text only will do; theirs has to be downloaded.
THEIR_MODELS = ("facebook/opt-125m", "facebook/opt-350m")

outcomes: dict[str, str] = {}
num_made = 0
# Tests in which a scheduler was made that was put in.
making: set[str] = set()


def prepare(vllm_config: VllmConfig) -> None:
    """What an engine does with its configuration before it makes our scheduler."""
    if vllm_config.kv_transfer_config is None:
        vllm_config.kv_transfer_config = modules_alone()
    if vllm_config.kv_transfer_config.kv_connector != ComposedConnector.__name__:
        compose_connectors(vllm_config)
    vllm_config.additional_config = {CONFIG_KEY: {}}
    vllm_config.scheduler_config.disable_hybrid_kv_cache_manager = True


def ready(base: type[Scheduler]) -> type[Scheduler]:
    """A class of scheduler that can be made as vLLM's tests do."""

    class Ready(base):  # type: ignore[misc, valid-type]
        # Their KV caches have no tensors.
        block_bytes = 1

        def __init__(self, vllm_config: VllmConfig, **options: Any) -> None:
            global num_made
            num_made += 1
            if issubclass(base, AsyncScheduler):
                # Turned off by the platform, a CPU.
                vllm_config.scheduler_config.async_scheduling = True
            if IS_OURS:
                prepare(vllm_config)
            super().__init__(vllm_config=vllm_config, **options)

    return Ready


def offline_model(model: str = THEIR_MODELS[0], **options: Any) -> ModelConfig:
    """As `ModelConfig` with a model that is here."""
    path = os.environ["UPSTREAM_MODEL"] if model in THEIR_MODELS else model
    return ModelConfig(model=path, **options)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Changes the names that vLLM's test modules have imported."""
    ours = PromptModuleScheduler, PromptModuleAsyncScheduler
    sync, overlapped = map(ready, ours if IS_OURS else (Scheduler, AsyncScheduler))
    changes = {
        "Scheduler": (Scheduler, overlapped if IS_ASYNC else sync),
        "AsyncScheduler": (AsyncScheduler, overlapped),
        "ModelConfig": (ModelConfig, offline_model),
    }
    modules = {item.module for item in session.items}
    modules |= {module for name, module in sys.modules.items() if name.startswith("tests.")}
    for module in modules:
        for name, (theirs, put_in) in changes.items():
            if getattr(module, name, None) is theirs:
                setattr(module, name, put_in)
    # They look for what their connector says, which may stand beside what ours does.
    MultiKVConnectorMetadata.requests = property(lambda self: self.metadata[-1].requests)
    StepMetadata.requests = ()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Notes whether a scheduler is made."""
    before = num_made
    try:
        return (yield)
    finally:
        if num_made > before:
            making.add(_name(item.nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes the outcome of each test, the worst of its phases."""
    name = _name(report.nodeid)
    if report.failed or outcomes.get(name) is None or outcomes[name] == "passed":
        outcomes[name] = report.outcome


def pytest_sessionfinish() -> None:
    """Writes the outcomes, and which tests made a scheduler."""
    found = {"outcomes": outcomes, "making": sorted(making)}
    Path(os.environ["UPSTREAM_OUTCOMES"]).write_text(json.dumps(found))


def _name(node_id: str) -> str:
    return node_id.removeprefix("tests/v1/core/")
