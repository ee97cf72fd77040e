"""Which CUDA graphs a step may be replayed from, by vLLM's own dispatchers."""

from types import SimpleNamespace

import pytest
from vllm.config import CUDAGraphMode
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager

from vllm_promptcache.compat.runner import _runner_class, never_replay_full

FULL, PIECEWISE, NONE = CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE, CUDAGraphMode.NONE


class Steps:
    is_regular = True


def v1(mode: CUDAGraphMode) -> SimpleNamespace:
    """A V1 runner with vLLM's dispatcher, for graphs of up to eight tokens."""
    compilation = SimpleNamespace(
        cudagraph_mode=mode,
        max_cudagraph_capture_size=8,
        cudagraph_capture_sizes=[1, 2, 4, 8],
        pass_config=SimpleNamespace(enable_sp=False),
        is_attention_compiled_piecewise=lambda: True,
        cudagraph_specialize_lora=False,
        compile_sizes=[],
    )
    config = SimpleNamespace(
        compilation_config=compilation,
        num_speculative_tokens=0,
        speculative_config=None,
        lora_config=None,
        parallel_config=SimpleNamespace(use_ubatching=False),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        model_config=SimpleNamespace(enforce_eager=False),
    )
    dispatcher = CudagraphDispatcher(config)  # type: ignore[arg-type]
    dispatcher.initialize_cudagraph_keys(mode, 1)
    config.use_v2_model_runner = False
    return SimpleNamespace(cudagraph_dispatcher=dispatcher, vllm_config=config)


def v2() -> SimpleNamespace:
    """A V2 runner with vLLM's manager, whose graphs of four tokens are captured."""
    manager = CudaGraphManager.__new__(CudaGraphManager)
    full = BatchExecutionDescriptor(FULL, 4, 4, uniform_token_count=1)
    piecewise = BatchExecutionDescriptor(PIECEWISE, 4, None)
    manager._graphs_captured = True
    manager._candidates = {(4, 0): [full, piecewise], (3, 0): [full, piecewise]}
    manager._resolve_effective_loras = lambda num: num
    config = SimpleNamespace(use_v2_model_runner=True)
    return SimpleNamespace(cudagraph_manager=manager, vllm_config=config)


def test_v1_replays_regular_steps_only() -> None:
    steps, runner = Steps(), v1(CUDAGraphMode.FULL_AND_PIECEWISE)
    never_replay_full(runner, lambda: steps.is_regular)
    dispatch = runner.cudagraph_dispatcher.dispatch
    assert dispatch(num_tokens=4, uniform_decode=True)[0] == FULL
    steps.is_regular = False
    assert dispatch(num_tokens=4, uniform_decode=True)[0] == PIECEWISE
    forced = dispatch(num_tokens=4, uniform_decode=True, valid_modes={NONE})
    assert forced[0] == NONE
    steps.is_regular = True
    assert dispatch(num_tokens=4, uniform_decode=True, invalid_modes={FULL})[0] == PIECEWISE


@pytest.mark.parametrize("mode", [CUDAGraphMode.FULL, CUDAGraphMode.FULL_DECODE_ONLY])
def test_v1_without_pieces_runs_others_eagerly(mode: CUDAGraphMode) -> None:
    steps, runner = Steps(), v1(mode)
    never_replay_full(runner, lambda: steps.is_regular)
    dispatch = runner.cudagraph_dispatcher.dispatch
    assert dispatch(num_tokens=4, uniform_decode=True)[0] == FULL
    steps.is_regular = False
    assert dispatch(num_tokens=4, uniform_decode=True)[0] == NONE


def test_v2_replays_regular_steps_only() -> None:
    steps, runner = Steps(), v2()
    never_replay_full(runner, lambda: steps.is_regular)
    dispatch = runner.cudagraph_manager.dispatch
    found = dispatch(3, 3, 1, num_active_loras=0, max_query_len=1)
    assert (found.cg_mode, found.num_tokens) == (FULL, 4)
    steps.is_regular = False
    found = dispatch(3, 3, 1, num_active_loras=0, max_query_len=1)
    # Nothing is padded without a graph.
    assert found == BatchExecutionDescriptor(NONE, 3, 3)
    assert dispatch(3, 3, None, num_active_loras=0).cg_mode == PIECEWISE


@pytest.mark.parametrize(
    ("is_v2", "room"), [(False, "gpu_model_runner"), (True, "gpu.model_runner")]
)
def test_the_runner_is_the_one_that_vllm_takes(is_v2: bool, room: str) -> None:
    found = _runner_class(SimpleNamespace(use_v2_model_runner=is_v2))  # type: ignore[arg-type]
    assert found.__module__ == f"vllm.v1.worker.{room}"
