"""The self-check: all names that are missing, in one error."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import vllm
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.scheduler import Scheduler

from tests.rooms import ROOT
from vllm_promptcache.compat import names
from vllm_promptcache.compat.check import check_names, check_object
from vllm_promptcache.connector.connector import PromptModuleConnector
from vllm_promptcache.core.scheduler import PromptModuleScheduler
from vllm_promptcache.errors import UnsupportedError


def test_this_vllm_has_all_names() -> None:
    check_names()


def test_names_of_classes_that_are_gone_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Scheduler, "_preempt_request")
    monkeypatch.delattr(BlockPool, "touch")
    with pytest.raises(UnsupportedError) as error:
        check_names()
    gone = "vllm.v1.core.block_pool.BlockPool.touch, vllm.v1.core.sched.scheduler.Scheduler._pree"
    assert f"lacks what prompt modules hook into: {gone}mpt_request\nhint: " in str(error.value)
    assert f"vLLM {vllm.__version__} lacks" in str(error.value)
    requirement = re.search(r"install (vllm\S+)", str(error.value))
    assert requirement
    assert f'"{requirement[1]}"' in (ROOT.parent / "setup.py").read_text()


def test_attributes_of_instances_are_looked_for_in_their_class() -> None:
    found = {
        "vllm.v1.request:Request": "_block_hasher",
        "vllm.v1.core.kv_cache_utils:KVCacheBlock": "ref_cnt",
    }
    check_names([names.Reliance((), found)])
    gone = {
        "vllm.v1.request:Request": "_block_hasher _gone",
        "vllm.v1.no_module:Request": "status",
        "vllm.v1.request:NoClass": "status",
        "vllm.v1.request": "Request no_function",
    }
    with pytest.raises(UnsupportedError) as error:
        check_names([names.Reliance((), gone)])
    missing = str(error.value).partition(": ")[2].splitlines()[0]
    assert missing == (
        "vllm.v1.request.Request._gone, vllm.v1.no_module.Request.status, "
        "vllm.v1.request.NoClass.status, vllm.v1.request.no_function"
    )


def bind(runner: SimpleNamespace) -> str:
    with pytest.raises(UnsupportedError) as error:
        PromptModuleConnector.__new__(PromptModuleConnector).bind_runner(runner)
    return str(error.value)


def of_runner(*names: str) -> str:
    return ", ".join(f"{name} of the model runner" for name in names)


def test_a_v1_runner_is_looked_at_when_it_is_bound() -> None:
    config = SimpleNamespace(use_v2_model_runner=False)
    runner = SimpleNamespace(
        attn_groups=[],
        cudagraph_dispatcher=SimpleNamespace(dispatch=None),
        get_model=None,
        input_batch=SimpleNamespace(req_ids=[]),
        query_start_loc=SimpleNamespace(gpu=None),
        vllm_config=config,
    )
    missing = of_runner(
        "input_batch.block_table.compute_slot_mapping", "positions", "query_start_loc.np"
    )
    assert f"hook into: {missing}\nhint: " in bind(runner)


def test_a_v2_runner_is_looked_at_when_it_is_bound() -> None:
    config = SimpleNamespace(use_v2_model_runner=True)
    runner = SimpleNamespace(attn_groups=[], device=None, get_model=None, vllm_config=config)
    missing = of_runner("block_tables", "cudagraph_manager", "max_num_tokens", "model_state")
    assert f"hook into: {missing}\nhint: " in bind(runner)


def test_a_scheduler_is_looked_at_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "__init__", lambda self: None)
    with pytest.raises(UnsupportedError) as error:
        PromptModuleScheduler()
    for name in names.SCHEDULER.attributes.split():
        assert f"{name} of the scheduler" in str(error.value)


def test_an_object_with_all_of_it_passes() -> None:
    reliance = names.Reliance((), owner="thing", attributes="a.b c")
    check_object(SimpleNamespace(a=SimpleNamespace(b=None), c=None), reliance)
