"""Slot copies on GPUs.

Tested against the plain version under Triton's interpreter only: nothing here has run on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from vllm_promptcache.kernels.block_rows import BlockRows
from vllm_promptcache.kernels.copy_slots import SlotTable, copy_slots_triton
from vllm_promptcache.kernels.reference import SlotCopier, Slots
from vllm_promptcache.kernels.rotate_keys import rotate_keys_triton


class TritonSlotCopier(SlotCopier):
    """Copies the KV of slots and blocks in all layers, as `SlotCopier` does."""

    _rotate_keys = staticmethod(rotate_keys_triton)

    def __init__(self, kv_caches: list[torch.Tensor], slot_elements: torch.Tensor) -> None:
        super().__init__(kv_caches, slot_elements)
        self._table = SlotTable.of([BlockRows(rows) for rows in self._layers], self._elements)
        # Compiled here, not by the first request that needs a copy. Slot 0 is vLLM's null block.
        self.copy(np.zeros(1, np.int64), np.zeros(1, np.int64))

    def copy(self, source: Slots, target: Slots) -> None:
        """See `SlotCopier.copy`."""
        copy_slots_triton(self._table, source, target)
