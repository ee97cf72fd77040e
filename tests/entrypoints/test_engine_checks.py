"""What an engine with prompt modules is not combined with."""

from __future__ import annotations

from pathlib import Path
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


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of an engine that is not refused."""
    monkeypatch.setattr("vllm_promptcache.engine._check_model", lambda model: None)
    config = MagicMock()
    config.cache_config.cache_dtype = "auto"
    config.cache_config.kv_cache_dtype_skip_layers = []
    parallel = config.parallel_config
    parallel.decode_context_parallel_size = parallel.prefill_context_parallel_size = 1
    parallel.use_ubatching = False
    parallel.world_size, parallel.data_parallel_size = 4, 1
    config.scheduler_config.scheduler_cls = None
    config.aux_output_config.enabled = False
    config.model_config.is_moe = False
    config.additional_config = {CONFIG_KEY: {}}
    return config


def test_experts_of_tokens_that_modules_bring_are_unknown(config: Any) -> None:
    config.aux_output_config.enabled = True
    with pytest.raises(UnsupportedError, match="--enable-return-routed-experts"):
        check_engine(config)


def test_several_workers_may_keep_files(config: Any, tmp_path: Path) -> None:
    config.additional_config[CONFIG_KEY]["dir"] = str(tmp_path / "modules")
    check_engine(config)
    assert (tmp_path / "modules").is_dir()


def test_workers_with_schedulers_of_their_own_are_refused(config: Any) -> None:
    config.parallel_config.distributed_executor_backend = "external_launcher"
    with pytest.raises(UnsupportedError, match="workers of an external launcher"):
        check_engine(config)
    config.parallel_config.world_size = 1
    check_engine(config)


def test_engines_that_share_experts_keep_no_files(config: Any, tmp_path: Path) -> None:
    config.additional_config[CONFIG_KEY]["dir"] = str(tmp_path)
    config.parallel_config.data_parallel_size = 2
    check_engine(config)
    config.model_config.is_moe = True
    with pytest.raises(UnsupportedError, match="experts of several data-parallel engines"):
        check_engine(config)
    config.parallel_config.data_parallel_size = 1
    check_engine(config)


def test_numba_may_be_loaded_before_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM reads the `vars` of all that is loaded, and llvmlite's library has none."""
    from llvmlite.binding import ffi

    monkeypatch.delitem(ffi.lib._fntab, "__dict__", raising=False)
    assert not isinstance(vars(ffi.lib), dict)
    prepare_engine_args(EngineArgs(model=".", additional_config={CONFIG_KEY: {}}))
    assert vars(ffi.lib) == {}


@pytest.mark.parametrize("cache_dtype", ["fp8_e5m2", "fp8_per_token_head", "nvfp4"])
def test_caches_with_scales_of_their_own_are_refused(
    monkeypatch: pytest.MonkeyPatch, cache_dtype: str
) -> None:
    monkeypatch.setattr("vllm_promptcache.engine._check_model", lambda model: None)
    config = MagicMock()
    config.cache_config.cache_dtype = cache_dtype
    with pytest.raises(UnsupportedError, match=f"--kv-cache-dtype {cache_dtype}\n.* bfloat16, fp8"):
        check_engine(config)


def test_layers_without_fp8_beside_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_promptcache.engine._check_model", lambda model: None)
    config = MagicMock()
    config.cache_config.cache_dtype = "fp8"
    config.cache_config.kv_cache_dtype_skip_layers = ["0"]
    with pytest.raises(UnsupportedError, match="--kv-cache-dtype-skip-layers"):
        check_engine(config)
