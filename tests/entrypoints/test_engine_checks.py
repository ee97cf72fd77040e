"""What an engine with prompt modules is not combined with."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_promptcache.config import CONFIG_KEY
from vllm_promptcache.connector.composed_connector import ComposedConnector
from vllm_promptcache.engine import check_engine, compose_connectors, prepare_engine_args
from vllm_promptcache.errors import UnsupportedError


def config_of(connector: str, num_stages: int) -> Any:
    config = MagicMock()
    config.kv_transfer_config = KVTransferConfig(kv_connector=connector, kv_role="kv_both")
    config.parallel_config.pipeline_parallel_size = num_stages
    return config


def test_offloading_whose_stages_differ_in_blocks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="SimpleCPUOffloadConnector and pipeline"):
        compose_connectors(config_of("SimpleCPUOffloadConnector", 2))


@pytest.mark.parametrize(
    ("connector", "num_stages"), [("SimpleCPUOffloadConnector", 1), ("OffloadingConnector", 2)]
)
def test_other_connectors_get_ours_beside_them(connector: str, num_stages: int) -> None:
    config = config_of(connector, num_stages)
    compose_connectors(config)
    assert config.kv_transfer_config.kv_connector == ComposedConnector.__name__


def test_experts_of_tokens_that_modules_bring_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_promptcache.engine._check_model", lambda model: None)
    config = MagicMock()
    config.cache_config.cache_dtype = "auto"
    parallel = config.parallel_config
    parallel.decode_context_parallel_size = parallel.prefill_context_parallel_size = 1
    parallel.use_ubatching = False
    config.scheduler_config.scheduler_cls = None
    config.aux_output_config.enabled = True
    with pytest.raises(UnsupportedError, match="--enable-return-routed-experts"):
        check_engine(config)


def test_numba_may_be_loaded_before_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM reads the `vars` of all that is loaded, and llvmlite's library has none."""
    from llvmlite.binding import ffi

    monkeypatch.delitem(ffi.lib._fntab, "__dict__", raising=False)
    assert not isinstance(vars(ffi.lib), dict)
    prepare_engine_args(EngineArgs(model=".", additional_config={CONFIG_KEY: {}}))
    assert vars(ffi.lib) == {}
