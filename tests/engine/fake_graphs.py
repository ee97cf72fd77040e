"""Full CUDA graphs of Model Runner V2 without a GPU: a replay that is computed anew.

As in a replay, the model gets nothing but the buffers of the capture: input ids, positions at the
address that it was given for dummies, slots, and the step's attention metadata as its builders made
it. Each step is offered a graph.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    ModelCudaGraphManager,
)
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.gpu.model_runner import GPUModelRunner


class FakeGraphs:
    """Stands in for vLLM's graphs in engines that are started while it is installed.

    Attributes:
        num_offered: Steps that were offered a graph.
        num_replayed: Those that took it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_offered = self.num_replayed = 0
        self._runner: Any = None
        self._positions: torch.Tensor
        self._metadata: Any = None
        pre_forward, initialize = ActiveKVConnector.pre_forward, GPUModelRunner.initialize_kv_cache

        def note_metadata(connector: Any, output: Any, batch: Any = None, **kwargs: Any) -> None:
            self._metadata = kwargs.get("attn_metadata")
            pre_forward(connector, output, batch, **kwargs)

        def note_runner(runner: Any, *args: Any, **kwargs: Any) -> Any:
            initialize(runner, *args, **kwargs)
            self._runner = runner

        monkeypatch.setattr(ActiveKVConnector, "pre_forward", note_metadata)
        monkeypatch.setattr(GPUModelRunner, "initialize_kv_cache", note_runner)
        monkeypatch.setattr(CudaGraphManager, "dispatch", lambda _, *a, **k: self._offer(*a))
        monkeypatch.setattr(
            ModelCudaGraphManager, "run_fullgraph", lambda _, desc: self._replay(desc)
        )

    def capture(self) -> None:
        """Takes the buffer of positions, as a capture does."""
        runner = self._runner
        inputs = runner.model_state.prepare_dummy_inputs(1, runner.max_num_tokens)
        self._positions = inputs["positions"]

    def _offer(self, num_reqs: int, num_tokens: int, *_: Any) -> BatchExecutionDescriptor:
        self.num_offered += 1
        return BatchExecutionDescriptor(CUDAGraphMode.FULL, num_tokens, num_reqs)

    def _replay(self, desc: Any) -> Any:
        self.num_replayed += 1
        runner, num_tokens = self._runner, desc.num_tokens
        slots = runner.block_tables.slot_mappings[:, :num_tokens]
        by_layer = build_slot_mappings_by_layer(slots, runner.kv_cache_config)
        with set_forward_context(
            self._metadata, runner.vllm_config, num_tokens=num_tokens, slot_mapping=by_layer
        ):
            return runner.model(
                input_ids=runner.input_buffers.input_ids[:num_tokens],
                positions=self._positions[:num_tokens],
            )
