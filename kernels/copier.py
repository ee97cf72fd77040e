"""Which slot copier serves which device."""

from __future__ import annotations

import torch

from vllm_promptcache.kernels.reference import SlotCopier


def make_slot_copier(kv_caches: list[torch.Tensor], slot_elements: torch.Tensor) -> SlotCopier:
    """Returns the fastest copier for the device of `kv_caches`.

    Args:
        kv_caches: KV cache of each layer, `[num_blocks, ...]`; see `BlockRows.of_layers`.
        slot_elements: `[num_elements, block_size]`, from `probe_slot_elements`.
    """
    # Imported where needed: numba and Triton each serve one kind of device.
    match kv_caches[0].device.type:
        case "cpu":
            from vllm_promptcache.kernels.cpu import CPUSlotCopier

            return CPUSlotCopier(kv_caches, slot_elements)
        case "cuda":
            from vllm_promptcache.kernels.gpu import TritonSlotCopier

            return TritonSlotCopier(kv_caches, slot_elements)
        case _:
            return SlotCopier(kv_caches, slot_elements)
