"""Relocation of one module on the CPU: the plain path and the CPU kernel.

    python -m benchmarks.relocation_kernel --dtype bfloat16

A module in blocks of vLLM's own layout is copied into other blocks with its keys rotated.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from vllm_promptcache.kernels.cpu import CPUSlotCopier
from vllm_promptcache.kernels.layout import probe_slot_elements
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.rotation import Rotation

# The demo model's shapes.
NUM_LAYERS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 30, 3, 64, 32
NUM_RUNS = 20


def write_kv(
    key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """As vLLM's attention backend for the CPU does."""
    blocks = kv_cache.view(len(kv_cache), NUM_KV_HEADS, 2 * BLOCK_SIZE, HEAD_SIZE)
    isa = _get_attn_isa(kv_cache.dtype, BLOCK_SIZE, HEAD_SIZE)
    ops.cpu_attn_reshape_and_cache(key, value, *blocks.chunk(2, dim=2), slot_mapping, isa)


def cos_sin_cache(num_positions: int) -> torch.Tensor:
    """As of plain RoPE, `[num_positions, HEAD_SIZE]`."""
    speeds = 10_000 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    angles = torch.arange(num_positions)[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def median_ms(copier: SlotCopier, num_tokens: int) -> float:
    """The median time of a relocation, in milliseconds."""
    num_blocks, times = -(-num_tokens // BLOCK_SIZE), []
    source, target = range(1, num_blocks + 1), range(num_blocks + 1, 2 * num_blocks + 1)
    cache, old = cos_sin_cache(2 * num_tokens), torch.arange(num_tokens)
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        rotation = Rotation.between(cache, old, old + num_tokens, is_neox=True)
        copier.rotate_blocks(source, target, rotation, head_size=HEAD_SIZE)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the relocation of a module.")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--num-tokens", type=int, default=500)
    args = parser.parse_args()
    num_blocks = 2 * (args.num_tokens // BLOCK_SIZE + 1) + 1
    shape = (num_blocks, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    kv_caches = [torch.randn(shape).to(getattr(torch, args.dtype)) for _ in range(NUM_LAYERS)]
    elements = probe_slot_elements(write_kv, kv_caches[0], NUM_KV_HEADS, HEAD_SIZE)
    for make in (SlotCopier, CPUSlotCopier):
        start = time.perf_counter()
        copier = make(kv_caches, elements)
        made_s = time.perf_counter() - start
        print(
            f"{make.__name__}: {median_ms(copier, args.num_tokens):.2f} ms, made in {made_s:.2f} s"
        )


if __name__ == "__main__":
    main()
