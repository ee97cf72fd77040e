"""A medium for vLLM's OffloadingConnector that runs on a CPU and saves as late as it may.

vLLM's own needs a GPU. What is saved is read from the KV cache only some steps after it was asked
for, or when vLLM waits for it, as a slow copy on a GPU would: by then a block that was given to
another request without a word holds something else.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

NUM_STEPS_LATE = 30


class LateOffloadingSpec(CPUOffloadingSpec):
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return LateWorker([cache.tensor for cache in kv_caches.tensors], self.num_chunks)


class LateWorker(OffloadingWorker):
    """A chunk is a block here."""

    def __init__(self, caches: list[torch.Tensor], num_chunks: int) -> None:
        self._caches = caches
        self._kept = [
            torch.zeros((num_chunks, *cache.shape[1:]), dtype=cache.dtype) for cache in caches
        ]
        self._pending: dict[int, tuple[int, Any, Any]] = {}
        self._finished: list[int] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._pending[job_id] = (NUM_STEPS_LATE, src_spec, dst_spec)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        source, target = torch.tensor(src_spec.block_ids), torch.tensor(dst_spec.block_ids)
        for cache, kept in zip(self._caches, self._kept, strict=True):
            cache[target] = kept[source]
        self._finished.append(job_id)
        return True

    def get_finished(self) -> list[TransferResult]:
        for job_id, (num_steps, source, target) in list(self._pending.items()):
            self._pending[job_id] = (num_steps - 1, source, target)
            if num_steps == 0:
                self._store(job_id)
        finished, self._finished = self._finished, []
        return [TransferResult(job_id, success=True) for job_id in finished]

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids & self._pending.keys():
            self._store(job_id)

    def _store(self, job_id: int) -> None:
        _, source, target = self._pending.pop(job_id)
        for cache, kept in zip(self._caches, self._kept, strict=True):
            kept[torch.tensor(target.block_ids)] = cache[torch.tensor(source.block_ids)]
        self._finished.append(job_id)
