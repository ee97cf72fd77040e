"""Kernels on the device, against the plain versions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vllm_promptcache.kernels.copier import make_slot_copier
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.rotation import Rotation

# The order of a cache's dimensions in memory: layers, blocks, heads, slots, content.
LAYOUTS = ("LBHNC", "LBNHC", "BLHNC", "BLNHC")
_SIZES = {"L": 3, "B": 11, "H": 2, "N": 16, "C": 128}
_HEAD_SIZE = 64


def check_kernels(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, bool]]:
    """Yields a layout, what was tried, and whether it is as in plain torch."""
    for layout in LAYOUTS:
        ours, plain = (_layers(layout, device, dtype) for _ in range(2))
        elements = _slot_elements()
        copier, reference = make_slot_copier(ours, elements), SlotCopier(plain, elements)
        yield layout, "copy", _copies(copier, reference, ours, plain)
        yield layout, "rotate", _rotates(copier, reference, ours, plain)
        yield layout, "read and write", _moves(copier, reference, ours, plain)


def _layers(layout: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Layers as vLLM registers them, `[blocks, heads, slots, content]`; the same each time."""
    shape = [_SIZES[name] for name in layout]
    memory = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return list(memory.permute([layout.index(name) for name in "LBHNC"]))


def _slot_elements() -> torch.Tensor:
    """Some order of the elements of a block: any one is right for the same blocks."""
    num_elements = _SIZES["H"] * _SIZES["N"] * _SIZES["C"]
    order = torch.randperm(num_elements, generator=torch.Generator().manual_seed(1))
    return order.view(-1, _SIZES["N"])


def _copies(
    copier: SlotCopier, reference: SlotCopier, ours: list[torch.Tensor], plain: list[torch.Tensor]
) -> bool:
    slots = np.random.default_rng(0).permutation(_SIZES["B"] * _SIZES["N"])[:80]
    for one in (copier, reference):
        one.copy(slots[:40], slots[40:])
    return _are_equal(ours, plain)


def _rotates(
    copier: SlotCopier, reference: SlotCopier, ours: list[torch.Tensor], plain: list[torch.Tensor]
) -> bool:
    old = torch.arange(37, device=ours[0].device)
    angles = torch.arange(4096, device=old.device)[:, None] / 100 ** torch.linspace(
        0, 1, _HEAD_SIZE // 2, device=old.device
    )
    cache = torch.cat([angles.cos(), angles.sin()], dim=1)
    rotation = Rotation.between(cache, old, old + 700, is_neox=True)
    for one in (copier, reference):
        one.rotate_blocks([1, 2, 3], [7, 5, 6], rotation, head_size=_HEAD_SIZE)
    # One unit in the last place: a compiler may round once where torch rounds twice.
    used = [layer[[7, 5]].float() for layer in (*ours, *plain)]
    pairs = zip(used[: len(ours)], used[len(ours) :], strict=True)
    return all(torch.allclose(*pair, rtol=2**-6, atol=2**-6) for pair in pairs)


def _moves(
    copier: SlotCopier, reference: SlotCopier, ours: list[torch.Tensor], plain: list[torch.Tensor]
) -> bool:
    for layer, other in zip(ours, plain, strict=True):
        other.copy_(layer)
    for one in (copier, reference):
        one.write_blocks([9, 4], one.read_blocks([2, 10]))
    return _are_equal(ours, plain)


def _are_equal(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, ours, plain))
